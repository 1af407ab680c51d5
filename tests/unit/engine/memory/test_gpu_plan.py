from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Settings, resolve_values
from appliance.engine.memory.footprint import Footprint
from appliance.engine.memory.gpu_plan import MemoryPlan, estimate, plan_from_measured
from appliance.engine.memory.gpus import GPUS, Gpu
from appliance.engine.memory.ledger import MemoryLedger
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.models.facts import ModelFacts
from tests.support.model_shapes import LLAMA_3_1_8B, QWEN3_0_6B

GIB = 2**30
H100, L4 = GPUS["h100"], GPUS["l4"]


def settings(**values: Any) -> Settings:
    return resolve_values(values).settings


def plan(facts: ModelFacts = LLAMA_3_1_8B, gpu: Gpu = H100, itemsize: int = 2, **values: Any) -> MemoryPlan:
    return estimate(facts, settings(**values), gpu, itemsize)


def test_the_cache_of_an_8b_model_on_an_h100_is_what_its_share_leaves() -> None:
    found = plan()
    assert found.kv_cache.bytes_per_block == 16 * 131_072
    left = int(0.9 * H100.total_bytes) - found.footprint.total
    assert found.kv_cache.num_blocks == left // (16 * 131_072)
    assert 440_000 < found.kv_cache.num_blocks * 16 < 450_000
    assert found.free == pytest.approx(0.1 * H100.total_bytes, abs=16 * 131_072)
    assert found.kv_cache.max_model_len == 131_072


def test_kv_cache_memory_is_taken_exactly_and_the_rest_stays_free() -> None:
    found = plan(kv_cache_memory=20 * GIB)
    assert found.kv_cache.total_bytes == 20 * GIB
    assert found.limited_by == "kv-cache-memory"
    assert found.free == H100.total_bytes - found.footprint.total - 20 * GIB


def test_a_number_of_blocks_beats_the_memory_settings() -> None:
    assert plan(num_gpu_blocks_override=8192, kv_cache_memory=GIB).kv_cache.num_blocks == 8192


def test_a_cache_in_fp8_holds_twice_the_tokens() -> None:
    fp8 = dataclasses.replace(Settings(), memory=dataclasses.replace(Settings().memory, kv_cache_dtype="fp8"))
    assert estimate(LLAMA_3_1_8B, fp8, H100, 2).kv_cache.num_blocks == pytest.approx(
        2 * plan().kv_cache.num_blocks, abs=1
    )


def test_a_swap_space_takes_buffers_of_the_gpu() -> None:
    assert plan(swap_space=8).footprint.state - plan().footprint.state == 4 * 64 * 2**20


def test_auto_is_the_longest_context_that_fits_to_the_block() -> None:
    length = plan(gpu=L4, max_model_len="auto").kv_cache.max_model_len
    assert length % 16 == 0
    assert plan(gpu=L4, max_model_len=length).kv_cache.max_model_len == length
    with pytest.raises(SettingsRefused):
        plan(gpu=L4, max_model_len=length + 16)


def test_auto_goes_no_further_than_the_model() -> None:
    assert plan(max_model_len="auto").kv_cache.max_model_len == 131_072


def test_auto_counts_whole_prompts_in_one_step() -> None:
    whole = plan(gpu=L4, max_model_len="auto", enable_chunked_prefill=False)
    assert whole.shape.max_num_batched_tokens == max(8192, whole.kv_cache.max_model_len)
    assert whole.kv_cache.max_model_len < plan(gpu=L4, max_model_len="auto").kv_cache.max_model_len


def test_a_context_that_does_not_fit_is_refused_with_numbers_that_work() -> None:
    with pytest.raises(SettingsRefused, match=r"131072 tokens .* needs 16\.00 GiB .* too little") as caught:
        plan(gpu=L4)
    shorter = re.search(r"max-model-len to (\d+) or less", str(caught.value))
    assert shorter is not None
    plan(gpu=L4, max_model_len=int(shorter[1]))


def test_the_share_of_memory_that_is_advised_is_enough() -> None:
    with pytest.raises(SettingsRefused) as caught:
        plan(gpu_memory_utilization=0.3)
    share = re.search(r"gpu-memory-utilization to ([\d.]+) or more", str(caught.value))
    assert share is not None
    plan(gpu_memory_utilization=float(share[1]))
    with pytest.raises(SettingsRefused):
        plan(gpu_memory_utilization=float(share[1]) - 0.02)


def test_a_model_that_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(SettingsRefused, match=r"does not fit: 14\.96 GiB of weights.* too much .*0\.7\d or more"):
        plan(gpu=L4, gpu_memory_utilization=0.5, max_model_len="auto")


def test_where_no_setting_helps_another_model_or_gpu_is_advised() -> None:
    large = dataclasses.replace(LLAMA_3_1_8B, num_parameters=70_000_000_000)
    with pytest.raises(SettingsRefused, match="smaller model or a GPU with more memory"):
        plan(large, max_model_len="auto")


def test_half_the_precision_is_advised_where_it_is_float32() -> None:
    with pytest.raises(SettingsRefused, match="dtype to bfloat16"):
        plan(gpu=L4, itemsize=4)


def test_a_cache_larger_than_the_gpu_is_refused_with_the_most_that_fits() -> None:
    with pytest.raises(SettingsRefused, match=r"kv-cache-memory asks for 100\.00 GiB") as caught:
        plan(kv_cache_memory=100 * GIB)
    most = re.search(r"kv-cache-memory to (\d+) or less", str(caught.value))
    assert most is not None
    assert plan(kv_cache_memory=int(most[1])).free < 16 * 131_072


def test_too_few_blocks_for_one_request_name_the_number_that_is_enough() -> None:
    with pytest.raises(SettingsRefused, match=r"num-gpu-blocks-override to 8192 or more"):
        plan(num_gpu_blocks_override=8191)
    plan(num_gpu_blocks_override=8192)


def test_memory_that_other_programs_hold_may_be_free_at_the_next_start() -> None:
    busy = dataclasses.replace(H100, other_bytes=60 * GIB)
    with pytest.raises(StartupError, match="other programs") as caught:
        plan(gpu=busy)
    assert not isinstance(caught.value, SettingsRefused)


def test_a_context_longer_than_the_model_is_made_for_is_refused() -> None:
    with pytest.raises(SettingsRefused, match=r"200000.*131072"):
        plan(max_model_len=200_000)


MEASURED = {
    "total": H100.total_bytes,
    "free": 60 * GIB,
    "reserved": H100.total_bytes - 60 * GIB - GIB,
    "weights": 15 * GIB,
    "state": GIB // 4,
    "activations": 2 * GIB,
}


def measured(estimated: MemoryPlan, *, changes: dict[str, int] | None = None, **values: Any) -> MemoryPlan:
    return plan_from_measured(estimated, settings(**values), **(MEASURED | (changes or {})))


def test_what_was_measured_replaces_the_estimate_but_for_graphs() -> None:
    estimated = plan()
    found = measured(estimated)
    graphs = estimated.footprint.cuda_graphs
    assert found.footprint == Footprint(
        other=GIB, weights=15 * GIB, state=GIB // 4, activations=2 * GIB, cuda_graphs=graphs
    )
    left = int(0.9 * H100.total_bytes) - found.footprint.total
    assert found.kv_cache.num_blocks == left // (16 * 131_072)
    recorded = found.with_cuda_graphs(graphs + GIB)
    assert recorded.free == found.free - GIB
    assert recorded.kv_cache == found.kv_cache


@pytest.mark.parametrize("values", [{}, {"max_model_len": "auto", "gpu_memory_utilization": 0.4}])
def test_an_estimate_that_is_measured_to_be_right_stays_as_it_is(values: dict[str, Any]) -> None:
    estimated = plan(**values)
    footprint = estimated.footprint
    as_estimated = {
        "free": H100.total_bytes - footprint.other - footprint.weights - footprint.state,
        "reserved": footprint.weights + footprint.state,
        "weights": footprint.weights,
        "state": footprint.state,
        "activations": footprint.activations,
    }
    assert measured(estimated, changes=as_estimated, **values) == estimated


def test_auto_gives_way_to_what_was_measured() -> None:
    estimated = plan(gpu=L4, max_model_len="auto")
    free = {"total": L4.total_bytes, "free": 6 * GIB, "reserved": L4.total_bytes - 7 * GIB}
    found = measured(estimated, changes=free, max_model_len="auto")
    assert found.kv_cache.max_model_len == found.kv_cache.num_blocks * 16 < estimated.kv_cache.max_model_len


def test_a_length_that_was_asked_for_does_not_give_way() -> None:
    estimated = plan(gpu=L4, max_model_len=20_000)
    free = {"total": L4.total_bytes, "free": 6 * GIB, "reserved": L4.total_bytes - 7 * GIB}
    with pytest.raises(SettingsRefused, match="20000 tokens"):
        measured(estimated, changes=free, max_model_len=20_000)


facts = st.sampled_from([LLAMA_3_1_8B, QWEN3_0_6B])
gpus = st.sampled_from(list(GPUS.values()))
choices = st.fixed_dictionaries(
    {"max_model_len": st.one_of(st.just("auto"), st.integers(16, 40960))},
    optional={
        "gpu_memory_utilization": st.floats(0.05, 1.0),
        "max_num_batched_tokens": st.integers(512, 65536),
        "max_num_seqs": st.integers(1, 512),
        "block_size": st.sampled_from([8, 16, 32, 256]),
        "enforce_eager": st.booleans(),
    },
)


def tokens(facts: ModelFacts, gpu: Gpu, values: dict[str, Any]) -> int:
    try:
        found = plan(facts, gpu, **values)
    except StartupError:
        return 0
    return found.kv_cache.num_blocks * found.kv_cache.block_size


@given(facts, gpus, choices, st.integers(0, 80 * GIB))
def test_more_memory_never_means_fewer_tokens_for_a_given_length(facts, gpu, values, more):
    if values["max_model_len"] == "auto":
        values = values | {"max_model_len": 1024}
    larger = dataclasses.replace(gpu, total_bytes=gpu.total_bytes + more)
    assert tokens(facts, larger, values) >= tokens(facts, gpu, values)


@given(facts, gpus, choices, st.integers(0, 80 * GIB))
def test_more_memory_never_means_a_shorter_context(facts, gpu, values, more):
    larger = dataclasses.replace(gpu, total_bytes=gpu.total_bytes + more)
    values = values | {"max_model_len": "auto"}
    try:
        before = plan(facts, gpu, **values).kv_cache.max_model_len
    except StartupError:
        return
    assert plan(facts, larger, **values).kv_cache.max_model_len >= before


@given(facts, gpus, choices)
def test_the_ledger_sums_to_the_total_and_one_request_always_fits(facts, gpu, values):
    try:
        ledger = MemoryLedger.of(plan(facts, gpu, **values))
    except StartupError:
        return
    parts = ledger.weights + ledger.activations + ledger.cuda_graphs + ledger.kv_cache + ledger.state + ledger.other
    assert parts + ledger.free == ledger.total
    assert ledger.free >= 0
    assert ledger.tokens >= ledger.max_model_len >= 1
    assert ledger.concurrency >= 1


@given(facts, gpus, choices)
def test_auto_finds_a_length_wherever_any_fits(facts, gpu, values):
    if tokens(facts, gpu, values) > 0:
        assert tokens(facts, gpu, values | {"max_model_len": "auto"}) > 0
