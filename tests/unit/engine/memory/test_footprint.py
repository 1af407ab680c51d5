from __future__ import annotations

import dataclasses

from appliance.config import PerformanceSettings, Settings, resolve_values
from appliance.engine.memory.footprint import activation_bytes, estimated_footprint, graph_bytes
from appliance.engine.memory.gpus import GPUS
from appliance.engine.memory.step_shape import StepShape, decode_graph_sizes, gpu_step_shape
from tests.support.model_shapes import LLAMA_3_1_8B, QWEN3_0_6B

HOPPER, AMPERE = GPUS["h100"], GPUS["a100-80"]
SHAPE = StepShape(
    block_size=16, max_num_seqs=256, max_num_batched_tokens=8192, graph_sizes=(1, 2, 4, 256), shares_prefix=False
)
DECODE_WORKSPACE = 2 * 132 * 2 * 4 * (128 + 2) * 4  # of an H100 and the four query heads of each of the 8B's others


def test_an_8b_model_takes_16_gb_of_weights_and_67_mb_of_rotary_tables() -> None:
    footprint = estimated_footprint(LLAMA_3_1_8B, SHAPE, GPUS["h100"], 2, 131072)
    assert footprint.weights == 16_060_522_496 + 131072 * 128 * 4


def test_the_state_of_requests_is_two_rows_of_blocks_and_one_of_logits_each() -> None:
    footprint = estimated_footprint(LLAMA_3_1_8B, SHAPE, GPUS["h100"], 2, 4096)
    staged = (3 * 8192 + 17 * 256 + 2 * 65536) * 4
    assert footprint.state == 256 * (2 * 256 * 4 + 128256 * 2) + staged + DECODE_WORKSPACE


def test_the_largest_step_peaks_at_the_gated_product_of_a_layer() -> None:
    per_token = (5 * 4096 + 3 * 14336) * 2  # the stream; gate, up and their product; two bytes each
    assert activation_bytes(LLAMA_3_1_8B, SHAPE, HOPPER, 2, 4096) == 8192 * per_token + 32 * 2**20


def test_short_requests_limit_a_step() -> None:
    most = activation_bytes(LLAMA_3_1_8B, dataclasses.replace(SHAPE, max_num_batched_tokens=256 * 15), HOPPER, 2, 4096)
    assert activation_bytes(LLAMA_3_1_8B, SHAPE, HOPPER, 2, 16) == most


def test_a_step_of_few_tokens_peaks_at_its_logits() -> None:
    few = dataclasses.replace(SHAPE, max_num_batched_tokens=256)
    logits = 256 * 151936 * 2 + 32 * 151936 * 16
    assert activation_bytes(QWEN3_0_6B, few, HOPPER, 2, 4096) == logits + 2 * 256 * 1024 * 2 + 32 * 2**20


def test_a_wide_attention_counts_more_than_a_narrow_feed_forward_block() -> None:
    wide = dataclasses.replace(LLAMA_3_1_8B, num_heads=256)
    per_token = (3 * 4096 + (256 + 16 + 256) * 128 + 4096) * 2
    assert activation_bytes(wide, SHAPE, HOPPER, 2, 4096) == 8192 * per_token + 32 * 2**20


def test_cublas_takes_a_larger_workspace_on_hopper() -> None:
    difference = activation_bytes(LLAMA_3_1_8B, SHAPE, HOPPER, 2, 4096) - activation_bytes(
        LLAMA_3_1_8B, SHAPE, AMPERE, 2, 4096
    )
    assert difference == (32 - 8) * 2**20 - 128 * 1024


def test_graphs_share_one_pool_and_cost_the_driver_something_each() -> None:
    four = graph_bytes(LLAMA_3_1_8B, SHAPE, HOPPER, 2)
    two = graph_bytes(LLAMA_3_1_8B, dataclasses.replace(SHAPE, graph_sizes=(1, 256)), HOPPER, 2)
    assert four - two == 2 * 32 * 64 * 1024
    assert graph_bytes(LLAMA_3_1_8B, dataclasses.replace(SHAPE, graph_sizes=()), HOPPER, 2) == 0


def test_batches_that_share_a_prefix_are_recorded_with_a_workspace_each() -> None:
    sharing = dataclasses.replace(SHAPE, shares_prefix=True)
    assert (sharing.num_graphs, SHAPE.num_graphs) == (5, 4)  # only the 256 is large enough to be worth another
    more = graph_bytes(LLAMA_3_1_8B, sharing, HOPPER, 2) - graph_bytes(LLAMA_3_1_8B, SHAPE, HOPPER, 2)
    assert more == 132 * 128 * (128 + 2) * 4 + DECODE_WORKSPACE + 32 * 64 * 1024


def test_a_tied_head_is_not_counted_again() -> None:
    footprint = estimated_footprint(QWEN3_0_6B, SHAPE, GPUS["h100"], 2, 40960)
    assert footprint.weights == 596_049_920 * 2 + 40960 * 128 * 4


def test_other_programs_count_beside_the_driver() -> None:
    busy = dataclasses.replace(GPUS["l4"], other_bytes=5 * 2**30)
    footprint = estimated_footprint(QWEN3_0_6B, SHAPE, busy, 2, 40960)
    assert footprint.other == GPUS["l4"].driver_bytes + 5 * 2**30


def test_a_step_on_a_gpu_is_large_unless_settings_say_otherwise() -> None:
    assert gpu_step_shape(Settings(), LLAMA_3_1_8B, 131072).max_num_batched_tokens == 8192
    assert gpu_step_shape(Settings(), LLAMA_3_1_8B, 131072).block_size == 16
    whole = resolve_values({"enable_chunked_prefill": False}).settings
    assert gpu_step_shape(whole, LLAMA_3_1_8B, 131072).max_num_batched_tokens == 131072
    small = resolve_values({"max_num_batched_tokens": 512, "block_size": 32, "max_num_seqs": 8}).settings
    assert gpu_step_shape(small, LLAMA_3_1_8B, 131072) == StepShape(
        32,
        8,
        512,
        (1, 2, 4, 8),
        shares_prefix=True,
        mixed_decodes=(0, 1, 4, 8),
        mixed_tokens=(64, 256, 512),
        mixed_chunks=8,
    )


def test_steps_with_chunks_are_recorded_as_far_as_launching_is_the_limit() -> None:
    assert gpu_step_shape(Settings(), LLAMA_3_1_8B, 131072).mixed_tokens == (64, 256, 512)
    assert gpu_step_shape(Settings(), QWEN3_0_6B, 40960).mixed_tokens == (64, 256, 512, 1024, 2048)
    assert gpu_step_shape(Settings(), QWEN3_0_6B, 40960).mixed_decodes == (0, 32, 128, 256)
    for off in ({"enforce_eager": True}, {"batch_invariant": True}, {"enable_cuda_graph": False}):
        assert gpu_step_shape(resolve_values(off).settings, QWEN3_0_6B, 40960).mixed_tokens == ()


def test_graphs_are_recorded_for_few_sizes_up_to_the_largest_batch() -> None:
    assert decode_graph_sizes(PerformanceSettings(), 20) == (1, 2, 4, 8, 16, 20)
    assert decode_graph_sizes(PerformanceSettings(), 1) == (1,)
    assert decode_graph_sizes(PerformanceSettings(cuda_graph_sizes=(64, 8, 512)), 256) == (8, 64)
    assert decode_graph_sizes(PerformanceSettings(enforce_eager=True), 256) == ()
