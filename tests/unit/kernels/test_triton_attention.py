"""The Triton attention kernels mean what the plain reference says: interpreted on any machine, compiled on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from appliance_kernels import reference
from appliance_kernels.triton_kernels import attention_decode_plan, attention_mixed
from appliance_kernels.triton_kernels.attention_configs import DecodeConfig, TileConfig, decode_config, mixed_config
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace
from appliance_kernels.triton_kernels.attention_decode_plan import plan_decode
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from tests.unit.kernels.attention_checks import (
    FP8,
    SMALL_DECODE,
    SMALL_TILES,
    assert_close,
    check_decode,
    check_mixed,
    check_shared,
    make_batch,
)
from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE

LENGTHS = [1, 170, 17, 64, 33]
REQUESTS = [(1, 1), (1, 90), (21, 21), (5, 70), (1, 32)]


@pytest.mark.parametrize("window", [None, 1, 40])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_decode_with_windows_and_softcap(window, softcap):
    check_decode(LENGTHS, window=window, softcap=softcap)


@pytest.mark.parametrize("num_programs", [1, 2, 7, 16, 60])
def test_decode_is_the_same_however_many_programs_share_the_work(num_programs):
    check_decode([300, 5, 64], heads=(1, 2), config=dataclasses.replace(SMALL_DECODE, num_programs=num_programs))


def test_a_program_has_at_least_the_given_tiles():
    config = dataclasses.replace(SMALL_DECODE, min_tiles=4)
    plan = plan_decode(torch.tensor([100, 70, 1], dtype=torch.int32, device=DEVICE), 1, config)
    assert plan.units_per_program.item() == 4
    assert plan.unit_start.tolist() == [0, 4, 7, 8]
    assert plan.first_request.tolist() == [0, 1, 2, 2, 2]  # the last three have no part


@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (1, 7), (1, 8)])
def test_decode_with_any_number_of_query_heads_for_each_kv_head(heads):
    check_decode([75, 20], heads=heads, head_dim=16)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32])
def test_every_head_size_and_block_size(head_dim, block_size):
    check_decode([75, 20], head_dim=head_dim, block_size=block_size, heads=(1, 3))
    check_mixed([(7, 40), (1, 33)], head_dim=head_dim, block_size=block_size, heads=(1, 3))


def test_blocks_larger_than_a_tile():
    check_decode([150, 20], block_size=64, window=70)
    check_mixed([(40, 150), (1, 20)], block_size=64, window=70)


def test_an_empty_row_becomes_zeros_and_what_pads_the_batch_is_no_work():
    batch = make_batch([(1, 40), (1, 9), (1, 1), (1, 5), (1, 7)])
    seq_lens = batch.seq_lens.clone()
    seq_lens[[1, 3, 4]] = 0
    out = batch.poisoned_out()
    decode_attention(batch.q, batch.kv_cache, batch.tables, seq_lens, batch.scale, out=out, config=SMALL_DECODE)
    assert out[1].abs().max() == 0
    assert_close(out[[0, 2]], batch.reference()[[0, 2]])
    assert torch.equal(out[3:].isnan(), batch.poisoned_out()[3:].isnan()), "padding is written"
    starts = plan_decode(seq_lens, 2, SMALL_DECODE).unit_start.tolist()
    assert starts[3:] == [starts[2] + 1] * 3


def test_a_batch_of_nothing_but_padding_is_hardly_any_work():
    batch = make_batch([(1, 40), (1, 9)])
    out = batch.poisoned_out()
    nothing = torch.zeros_like(batch.seq_lens)
    decode_attention(batch.q, batch.kv_cache, batch.tables, nothing, batch.scale, out=out, config=SMALL_DECODE)
    assert torch.equal(out[1:].isnan(), batch.poisoned_out()[1:].isnan())


@pytest.mark.parametrize("live", [1, 5, 68, 168])
def test_padding_leaves_the_parts_of_a_batch_as_they_are(live):
    lengths = torch.randint(100, 1800, (live,), dtype=torch.int32, device=DEVICE)
    config = dataclasses.replace(SMALL_DECODE, num_programs=264)
    alone = plan_decode(lengths, 8, config)
    padded = plan_decode(torch.cat((lengths, torch.zeros(100, dtype=torch.int32, device=DEVICE))), 8, config)
    assert padded.units_per_program.tolist() == alone.units_per_program.tolist()
    assert padded.unit_start.tolist() == alone.unit_start.tolist() + [alone.unit_start.tolist()[-1]] * 100
    busy = -(-int(alone.unit_start[-1]) * 8 // int(alone.units_per_program))
    assert padded.first_request.tolist()[:busy] == alone.first_request.tolist()[:busy]


def test_a_plan_and_a_workspace_serve_many_layers():
    batch = make_batch([(1, 130), (1, 40)])
    workspace = decode_workspace(8, 6, 2, 64, SMALL_DECODE, DEVICE)
    plan = plan_decode(batch.seq_lens, 2, SMALL_DECODE)
    for layer in range(2):
        batch.q = torch.randn_like(batch.q)
        out = decode_attention(
            batch.q, batch.kv_cache, batch.tables, batch.seq_lens, batch.scale, plan=plan, workspace=workspace
        )
        torch.testing.assert_close(out, batch.reference(), atol=5e-5, rtol=0, msg=f"layer {layer}")


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_mixed_batches_with_windows_and_softcap(window, softcap):
    check_mixed(REQUESTS, window=window, softcap=softcap)


@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (1, 7), (1, 8)])
def test_mixed_batches_with_any_number_of_query_heads_for_each_kv_head(heads):
    check_mixed([(9, 20), (1, 50), (18, 18)], heads=heads, head_dim=16)


def test_rows_past_the_last_request_are_not_written():
    batch = make_batch([(3, 9), (2, 20)])
    padded = torch.randn(9, 6, 64, dtype=batch.q.dtype, device=DEVICE)
    padded[:5] = batch.q
    out = torch.full_like(padded, torch.nan)
    mixed_attention(
        padded,
        batch.kv_cache,
        batch.tables,
        batch.query_start,
        batch.seq_lens,
        batch.scale,
        out=out,
        config=SMALL_TILES,
    )
    assert_close(out[:5], batch.reference())
    assert out[5:].isnan().all()


def test_more_requests_than_are_looked_at_at_once(monkeypatch):
    monkeypatch.setattr(attention_decode_plan, "PLAN_CHUNK", 4)
    monkeypatch.setattr(attention_mixed, "SEARCH_CHUNK", 4)
    check_decode([1 + 9 * r % 50 for r in range(11)], heads=(1, 1), head_dim=16)
    check_mixed([(1 + r % 3, 3 + 9 * r % 50) for r in range(11)], heads=(1, 1), head_dim=16)


def test_query_tiles_that_begin_at_any_place_in_a_key_tile():
    check_mixed([(3, 31 + i) for i in range(6)], heads=(1, 1), head_dim=16)


@pytest.mark.parametrize("window", [None, 100, 20])
def test_a_shared_prefix_is_added_to_what_is_each_requests_own(window):
    check_shared([65, 81, 100, 130, 66], 4, window=window)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_window_that_begins_within_the_shared_prefix(splits):
    check_shared([97, 113, 120], 6, window=40, splits=splits)


def test_requests_that_share_nothing_are_right_beside_those_that_do():
    check_shared([50, 81, 64, 49], 3, alone=(1, 2), softcap=5.0)


def test_with_nothing_shared_a_plain_decode_remains():
    check_shared([50, 81], 0)


def test_more_splits_than_tiles_of_the_shared_prefix():
    check_shared([40, 33], 2, splits=4, heads=(1, 4))


def test_an_argument_that_does_not_fit_is_named():
    batch = make_batch([(1, 4)])
    with pytest.raises(ValueError, match="contiguous within a block"):
        decode_attention(batch.q, batch.kv_cache.transpose(2, 3), batch.tables, batch.seq_lens, 1.0)
    with pytest.raises(ValueError, match=r"kv_cache is torch\.float32"):
        mixed_attention(batch.q.half(), batch.kv_cache, batch.tables, batch.query_start, batch.seq_lens, 1.0)


def test_16_bit_dtypes():
    """The interpreter has no matrix product of bfloat16; the compiled tests below have all three."""
    shape = {"dtype": torch.float16, "heads": (1, 3)}
    check_decode([75, 20], **shape)
    check_mixed([(7, 40), (1, 33)], **shape)
    check_shared([40, 33], 2, **shape)


def configs(head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype) -> tuple[DecodeConfig, TileConfig]:
    return decode_config(DEVICE, head_dim, cache_dtype), mixed_config(DEVICE, head_dim, dtype)


# of the queries and the cache
COMPILED_DTYPES = [
    *(pytest.param(dtype, dtype, id=str(dtype)) for dtype in ALL_DTYPES),
    pytest.param(torch.bfloat16, FP8, id="fp8"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "cache_dtype"), COMPILED_DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("window", [None, 300])
def test_compiled_kernels_with_the_cards_own_tiles(dtype, head_dim, block_size, window, cache_dtype):
    decode, tiles = configs(head_dim, dtype, cache_dtype)
    shape = {"dtype": dtype, "cache_dtype": cache_dtype, "head_dim": head_dim}
    shape |= {"block_size": block_size, "window": window}
    lengths = [1, 3001, 517, 64, 1023, 16, 2049, 700]
    requests = [(1, 1), (1, 2000), (700, 700), (129, 1500), (5, 640), (1, 64)]
    for heads in ((8, 4), (2, 7)):
        check_decode(lengths, heads=heads, config=decode, **shape)
        check_mixed(requests, heads=heads, config=tiles, **shape)
        check_shared([600 + 7 * i for i in range(40)], 512 // block_size, heads=heads, alone=(3, 39), **shape)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "cache_dtype"), COMPILED_DTYPES)
@pytest.mark.parametrize("per_kv", [1, 3, 8, 16])
def test_compiled_kernels_with_softcap_and_other_head_ratios(dtype, per_kv, cache_dtype):
    decode, tiles = configs(128, dtype, cache_dtype)
    shape = {"dtype": dtype, "cache_dtype": cache_dtype, "head_dim": 128, "heads": (2, per_kv), "softcap": 20.0}
    check_decode([3001, 5, 700], config=decode, **shape)
    check_mixed([(300, 900), (1, 77), (65, 65)], config=tiles, **shape)
    check_shared([600 + 7 * i for i in range(40)], 32, **shape)


@pytest.mark.gpu
def test_one_captured_graph_serves_every_length():
    batch = make_batch([(1, 3000), (1, 2900), (1, 2000), (1, 2500)], heads=(8, 4), head_dim=128, dtype=torch.bfloat16)
    config = decode_config(DEVICE, 128, torch.bfloat16)
    workspace = decode_workspace(4, 32, 8, 128, config, DEVICE)
    seq_lens = batch.seq_lens.clone()
    out = batch.poisoned_out()

    def step():
        decode_attention(
            batch.q, batch.kv_cache, batch.tables, seq_lens, batch.scale, out=out, workspace=workspace, config=config
        )

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for lengths in ([1, 2, 3, 4], [3000, 1, 1, 1], [2999, 2899, 1999, 2499], [64, 0, 100, 1]):
        seq_lens.copy_(torch.tensor(lengths, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        live = [r for r, length in enumerate(lengths) if length]
        batch.metadata.seq_lens = lengths
        batch.metadata.query_start = [0, 1, 2, 3, 4]
        want = torch.zeros_like(out)
        for r in live:
            one = dataclasses.replace(
                batch.metadata, block_tables=batch.tables[r : r + 1], query_start=[0, 1], seq_lens=[lengths[r]]
            )
            want[r] = reference.paged_attention(batch.q[r : r + 1], batch.kv_cache.nan_to_num(0.0), one, batch.scale)[0]
        assert_close(out, want)
