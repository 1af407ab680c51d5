"""Greedy tokens of the real model are the same when keys and values go through host memory on their way."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from appliance.engine.core import EngineCore
from appliance.protocol.sampling_params import SamplingParams
from tests.support.engine_runs import Result, build, run

BLOCK = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, seed=0)
LICENSE = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="module")
def text(demo_model_fp32: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(demo_model_fp32).encode(LICENSE.read_text())


@pytest.fixture(scope="module")
def plain(demo_model_fp32: Path) -> EngineCore:
    """An engine with room for all of it."""
    return small_engine(demo_model_fp32, 64)


def tokens_of(results: list[Result]) -> list[list[int]]:
    assert all(result.finish_reason == "length" for result in results)
    return [result.token_ids for result in results]


def small_engine(model: Path, num_blocks: int, **changes: object) -> EngineCore:
    return build(model, num_gpu_blocks_override=num_blocks, max_model_len=num_blocks * BLOCK, **changes)


def test_prefixes_that_left_the_device_come_back_with_the_same_tokens(
    demo_model_fp32: Path, plain: EngineCore, text: list[int]
) -> None:
    prompts = [text[start : start + 100] for start in (0, 200, 400)]
    tiered = small_engine(demo_model_fp32, 10, swap_space=0.05)
    expected = [tokens_of(run(plain, [prompt], GREEDY)) for prompt in prompts]
    assert [tokens_of(run(tiered, [prompt], GREEDY)) for prompt in prompts] == expected
    assert tiered.stats().host_cache_usage > 0

    again = [run(tiered, [prompt], GREEDY) for prompt in prompts]
    assert [tokens_of(results) for results in again] == expected
    assert [result.num_cached_tokens for results in again for result in results] == [96, 96, 96]
    assert tiered.stats().host_cache_hits >= 2 * 96
    assert tiered.stats().prefix_cache_hits == 3 * 96


@pytest.mark.parametrize("preemption_mode", ["recompute", "swap"])
def test_preempted_requests_resume_from_the_host_with_the_same_tokens(
    demo_model_fp32: Path, plain: EngineCore, text: list[int], preemption_mode: str
) -> None:
    prompts = [text[start : start + 30] for start in (0, 200, 400, 600)]
    expected = tokens_of(run(plain, prompts, GREEDY))
    crowded = small_engine(demo_model_fp32, 10, swap_space=0.05, preemption_mode=preemption_mode)
    assert tokens_of(run(crowded, prompts, GREEDY)) == expected
    stats = crowded.stats()
    assert stats.num_preemptions > 0
    assert stats.host_cache_hits > 0
    assert stats.num_swapped == 0
