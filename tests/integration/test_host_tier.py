"""Greedy tokens are the same when keys and values go through host memory on their way."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from appliance.engine.core import EngineCore
from appliance.protocol.sampling_params import SamplingParams
from tests.support.engine_runs import Result, build, run
from tests.support.tiny_models import prompt, tiny_model

BLOCK = 16
LICENSE = Path(__file__).parents[2] / "LICENSE"


def greedy(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, seed=0)


def tokens_of(results: list[Result]) -> list[list[int]]:
    assert all(result.finish_reason == "length" for result in results)
    return [result.token_ids for result in results]


def small_engine(model: Path, num_blocks: int, **changes: object) -> EngineCore:
    return build(model, num_gpu_blocks_override=num_blocks, max_model_len=min(num_blocks * BLOCK, 256), **changes)


def test_prefixes_of_the_real_model_that_left_the_device_come_back(demo_model_fp32: Path) -> None:
    text = AutoTokenizer.from_pretrained(demo_model_fp32).encode(LICENSE.read_text())
    prompts = [text[start : start + 100] for start in (0, 200)]
    plain = small_engine(demo_model_fp32, 64)
    tiered = small_engine(demo_model_fp32, 8, swap_space=0.05)
    expected = [tokens_of(run(plain, [prompt], greedy(6))) for prompt in prompts]
    assert [tokens_of(run(tiered, [prompt], greedy(6))) for prompt in prompts] == expected
    assert tiered.stats().host_cache_usage > 0

    again = [run(tiered, [prompt], greedy(6)) for prompt in prompts]
    assert [tokens_of(results) for results in again] == expected
    assert [result.num_cached_tokens for results in again for result in results] == [96, 96]
    assert tiered.stats().host_cache_hits > 96
    assert tiered.stats().prefix_cache_hits == 2 * 96


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("preemption_mode", ["recompute", "swap"])
@pytest.mark.parametrize("swap_space", [0.05, 0.00003])  # the smaller one has fewer blocks than the device
def test_preempted_requests_resume_from_the_host_with_the_same_tokens(
    tiny: Path, preemption_mode: str, swap_space: float
) -> None:
    prompts = [prompt(14 + i, seed=i).tolist() for i in range(6)]
    expected = tokens_of(run(small_engine(tiny, 64), prompts, greedy(60)))
    crowded = small_engine(tiny, 12, swap_space=swap_space, preemption_mode=preemption_mode)
    assert tokens_of(run(crowded, prompts, greedy(60))) == expected
    stats = crowded.stats()
    assert stats.num_preemptions > 0
    assert stats.host_cache_hits > 0
    assert stats.num_swapped == 0
