"""On a GPU, keys and values that went through host memory give the same bits, with two steps under way."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from appliance.engine.core import EngineCore
from appliance.protocol.sampling_params import SamplingParams
from tests.support.engine_runs import Result, build, run
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.gpu

VOCAB_SIZE = 2048
PARAMS = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, seed=0, logprobs=2)
rng = random.Random(0)
STEM = [rng.randrange(3, VOCAB_SIZE) for _ in range(100)]
PROMPTS = [STEM[: rng.choice([0, 40, 100])] + [rng.randrange(3, VOCAB_SIZE) for _ in range(30)] for _ in range(24)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 64}
    tiny_model("llama", vocab_size=VOCAB_SIZE, max_position_embeddings=512, **sizes).save_pretrained(folder)
    return folder


def engine(model: Path, kv_tokens: int, **settings: object) -> EngineCore:
    """Batch-invariant, so that neither who runs beside whom nor what is computed again changes a bit."""
    return build(model, dtype="bfloat16", batch_invariant=True, max_num_seqs=8, kv_tokens=kv_tokens, **settings)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[Result]:
    core = engine(model, 8192)
    results = run(core, PROMPTS, PARAMS)
    assert core.stats().num_preemptions == 0
    return results


@pytest.mark.parametrize("preemption_mode", ["recompute", "swap"])
def test_preempted_requests_and_evicted_prefixes_come_back_bit_for_bit(
    model: Path, expected: list[Result], preemption_mode: str
) -> None:
    core = engine(model, 640, max_model_len=256, swap_space=0.1, preemption_mode=preemption_mode)
    for _ in range(2):  # the second time much of it comes from the host
        results = run(core, PROMPTS, PARAMS)
        assert [result.token_ids for result in results] == [result.token_ids for result in expected]
        assert [result.logprobs for result in results] == [result.logprobs for result in expected]
    stats = core.stats()
    assert stats.num_preemptions > 0
    assert stats.host_cache_hits > 500
    assert stats.num_swapped == 0
