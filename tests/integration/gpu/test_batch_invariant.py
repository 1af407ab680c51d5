"""With batch-invariant a request's tokens and log-probabilities are the same bits whatever runs beside it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from appliance.engine.core import EngineCore
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest
from tests.support.engine_runs import Result, build, run
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.gpu

VOCAB_SIZE = 2048
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SPECIFIC = {"llama": {"head_dim": 64}, "gemma3": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 40}}
NUM_OTHERS = 32
COMMON = {"max_tokens": 40, "ignore_eos": True, "logprobs": 3}
OBSERVED = [
    (150, SamplingParams(temperature=0.0, seed=1, **COMMON)),
    (33, SamplingParams(temperature=1.0, seed=2, **COMMON)),
    (90, SamplingParams(temperature=0.8, top_k=50, top_p=0.9, seed=3, **COMMON)),
    (1, SamplingParams(temperature=1.0, repetition_penalty=1.2, seed=4, **COMMON)),
]  # (prompt tokens, parameters)


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(length)]


PROMPTS = [random_prompt(random.Random(length), length) for length, _ in OBSERVED]


@pytest.fixture(scope="module", params=sorted(SPECIFIC))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param, **SIZES, **SPECIFIC[request.param]).save_pretrained(folder)
    return folder


def engine(model: Path, **settings: object) -> EngineCore:
    return build(model, dtype="bfloat16", batch_invariant=True, **{"max_num_seqs": 24, **settings})


@pytest.fixture(scope="module")
def alone(model: Path) -> list[Result]:
    """Each observed request by itself, its prompt in one step."""
    core = engine(model, kv_tokens=4096, max_num_batched_tokens=1024)
    results = []
    for prompt, (_, params) in zip(PROMPTS, OBSERVED, strict=True):
        core.reset_prefix_cache()
        results += run(core, [prompt], params)
    assert [len(result.token_ids) for result in results] == [40] * len(OBSERVED)
    return results


def run_among_others(core: EngineCore, rng: random.Random) -> tuple[list[Result], int]:
    """The observed requests among others that come and go; the others' prompts begin as theirs do, or not.

    Returns also the most requests that ran in one step.
    """
    requests = [("observed", prompt, params) for prompt, (_, params) in zip(PROMPTS, OBSERVED, strict=True)]
    for _ in range(NUM_OTHERS):
        begin = rng.choice(PROMPTS)[: rng.choice([0, 16, 70])]
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.7, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(1000),
            max_tokens=rng.randint(1, 100),
            ignore_eos=True,
            logprobs=rng.choice([None, 1]),
        )
        requests.append(("other", begin + random_prompt(rng, rng.randint(1, 200)), params))
    arrivals = sorted((rng.randrange(30), number) for number in range(len(requests)))
    results = {str(number): Result() for number in range(len(requests))}
    most, step = 0, 0
    while arrivals or core.has_work():
        while arrivals and (arrivals[0][0] <= step or not core.has_work()):
            number = arrivals.pop(0)[1]
            _, prompt, params = requests[number]
            assert core.add(AddRequest(str(number), prompt, params, time.time())) is None
        for delta in core.step():
            results[delta.request_id].take(delta)
        most = max(most, core.stats().num_running)
        step += 1
    return [results[str(number)] for number in range(len(OBSERVED))], most


def assert_same(got: list[Result], want: list[Result]) -> None:
    for number, (one, other) in enumerate(zip(got, want, strict=True)):
        assert one.finish_reason == "length", one.error
        assert one.token_ids == other.token_ids, f"request {number}"
        assert one.logprobs == other.logprobs, f"request {number}"  # equal floats, not close ones


@pytest.mark.parametrize("seed", [0, 1])
def test_a_busy_engine_gives_what_an_idle_one_gives(model: Path, alone: list[Result], seed: int) -> None:
    core = engine(model, kv_tokens=32768, max_num_batched_tokens=96)
    got, most = run_among_others(core, random.Random(seed))
    assert most >= 16
    assert_same(got, alone)


def test_preempted_requests_go_on_as_if_nothing_had_happened(model: Path, alone: list[Result]) -> None:
    core = engine(model, kv_tokens=640, max_num_batched_tokens=128)
    got, _ = run_among_others(core, random.Random(2))
    assert core.stats().num_preemptions > 0
    assert_same(got, alone)


def test_a_prompt_from_the_prefix_cache_goes_on_as_a_computed_one(model: Path, alone: list[Result]) -> None:
    core = engine(model, kv_tokens=32768, max_num_batched_tokens=96)
    run_among_others(core, random.Random(3))
    again = [run(core, [prompt], params)[0] for prompt, (_, params) in zip(PROMPTS, OBSERVED, strict=True)]
    assert again[0].num_cached_tokens >= 128
    assert_same(again, alone)


def test_eager_steps_give_what_graphs_give(model: Path, alone: list[Result]) -> None:
    core = engine(model, kv_tokens=4096, max_num_batched_tokens=1024, enforce_eager=True)
    assert_same([run(core, [prompt], params)[0] for prompt, (_, params) in zip(PROMPTS, OBSERVED, strict=True)], alone)
