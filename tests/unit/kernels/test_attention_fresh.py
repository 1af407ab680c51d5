"""Attention of whole prompts means what the plain reference says: interpreted on any machine, compiled on a GPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from appliance_kernels import reference
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.triton_kernels import attention_fresh
from appliance_kernels.triton_kernels.attention_fresh import FreshConfig, fresh_attention, fresh_config, plan_fresh
from tests.unit.kernels.gluon_emulator import emulate
from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE

# As for the paged kernels: float32 differs by summation order; in 16 bits the probabilities are rounded before they
# meet the values, and the output once more.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
SMALL = FreshConfig(rows=16, tile=32, num_warps=4, num_stages=2)
HOPPER = FreshConfig(rows=128, tile=128, num_warps=4, num_stages=2, hopper=True)
LENGTHS = [1, 70, 17, 32, 0, 33]


def check(
    lengths: list[int],
    *,
    heads: tuple[int, int] = (2, 3),
    head_dim: int = 64,
    window: int | None = None,
    softcap: float | None = None,
    dtype: torch.dtype = torch.float32,
    config: FreshConfig | None = SMALL,
    rows_before: int = 3,
    rows_after: int = 5,
) -> None:
    """Requests of `lengths` rows between others that are NaN; heads are (key/value heads, query heads for each)."""
    num_kv_heads, per_kv = heads
    num_q_heads = num_kv_heads * per_kv
    starts = [rows_before, *itertools.accumulate(lengths, initial=rows_before)][1:]
    qkv = torch.randn(starts[-1] + rows_after, num_q_heads + 2 * num_kv_heads, head_dim)
    qkv[:rows_before] = qkv[starts[-1] :] = torch.nan
    qkv = qkv.to(DEVICE, dtype)
    q, k, v = qkv.split([num_q_heads, num_kv_heads, num_kv_heads], 1)
    out = torch.full(q.shape, torch.nan, dtype=dtype, device=DEVICE)
    query_start = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    fresh_attention(
        q, k, v, query_start, head_dim**-0.5, sliding_window=window, softcap=softcap, out=out, config=config
    )
    assert out[:rows_before].isnan().all()
    assert out[starts[-1] :].isnan().all()
    for begin, end in itertools.pairwise(starts):
        if begin < end:
            want = whole_prompt(q[begin:end], k[begin:end], v[begin:end], head_dim**-0.5, window, softcap)
            torch.testing.assert_close(out[begin:end].float(), want.float(), atol=TOLERANCE[dtype], rtol=0)


def whole_prompt(q, k, v, scale, window, softcap):
    """The reference with one block that holds the whole request."""
    length = len(q)
    cache = torch.stack((k, v)).transpose(1, 2).unsqueeze(0)
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    table = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    metadata = AttentionMetadata(empty, empty, table, [0, length], [length], length)
    return reference.paged_attention(q, cache, metadata, scale, window, softcap)


@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_prompts_with_windows_and_softcap(window, softcap):
    check(LENGTHS, window=window, softcap=softcap)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128, 256])
def test_every_head_size(head_dim):
    check([40, 7], head_dim=head_dim, heads=(1, 2))


@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (1, 7)])
def test_any_number_of_query_heads_for_each_kv_head(heads):
    check([20, 33], heads=heads, head_dim=16)


def test_more_rows_than_keys_in_a_tile():
    check(LENGTHS, heads=(1, 1), head_dim=16, config=FreshConfig(rows=32, tile=16, num_warps=4, num_stages=2))


def test_16_bits():
    """The interpreter has no matrix product of bfloat16; the compiled tests below have all three."""
    check([40, 7], dtype=torch.float16)


def test_no_tokens():
    empty = torch.zeros(0, 2, 16, device=DEVICE)
    starts = torch.zeros(2, dtype=torch.int32, device=DEVICE)
    assert fresh_attention(empty, empty, empty, starts, 1.0).shape == (0, 2, 16)


def test_tiles_that_see_most_keys_come_first_and_none_is_missing(monkeypatch):
    monkeypatch.setattr(attention_fresh, "PLAN_CHUNK", 4)
    lengths = [5, 0, 40, 16, 17, 1, 33, 0, 64, 2]
    starts = [7, *itertools.accumulate(lengths, initial=7)][1:]
    query_start = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    plan = plan_fresh(query_start, starts[-1] + 9, SMALL)
    items = plan.items[: plan.count.item(), :3].tolist()
    positions = [position for _, position, _ in items]
    assert positions == sorted(positions, reverse=True)
    want = {(b + p, p, e) for b, e in itertools.pairwise(starts) for p in range(0, e - b, 16)}
    assert {tuple(item) for item in items} == want
    assert len(items) == len(want)


def test_an_argument_that_does_not_fit_is_named():
    q, k = torch.randn(4, 4, 16, device=DEVICE), torch.randn(4, 2, 16, device=DEVICE)
    starts = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="contiguous"):
        fresh_attention(q, k, k.transpose(1, 2).contiguous().transpose(1, 2), starts, 1.0)
    with pytest.raises(ValueError, match="don't fit"):
        fresh_attention(q, k, k[:, :1], starts, 1.0)
    with pytest.raises(ValueError, match="tiles of 16 rows"):
        plan = plan_fresh(starts, 4, SMALL)
        fresh_attention(q, k, k, starts, 1.0, plan=plan, config=FreshConfig(32, 16, 4, 2))


@pytest.fixture
def emulated(monkeypatch):
    """Hopper's kernel, run on the CPU."""
    if DEVICE.type == "cuda":
        pytest.skip("the compiled kernel is tested below")
    module = pytest.importorskip("appliance_kernels.triton_kernels.attention_fresh_hopper")
    emulate(module, "fresh_hopper_kernel", monkeypatch)


@pytest.mark.parametrize("num_stages", [2, 3])
def test_hoppers_barriers_and_tiles(emulated, num_stages):
    config = FreshConfig(128, 128, 4, num_stages, hopper=True)
    check([1, 700, 128, 0, 129, 64, 300], heads=(1, 2), dtype=torch.float16, config=config)


@pytest.mark.parametrize(("window", "softcap"), [(1, None), (100, None), (300, 5.0), (None, 5.0)])
def test_hoppers_windows_and_softcap(emulated, window, softcap):
    check([700, 5, 257], window=window, softcap=softcap, heads=(1, 1), dtype=torch.float16, config=HOPPER)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("window", [None, 300])
def test_compiled_with_the_cards_own_tiles(dtype, head_dim, window):
    shape = {"dtype": dtype, "head_dim": head_dim, "window": window, "config": None}
    check([1, 2000, 700, 0, 129, 64, 128, 5], heads=(8, 4), **shape)
    check([1100, 3], heads=(2, 7), **shape)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("per_kv", [1, 3, 8])
def test_compiled_with_softcap_and_other_head_ratios(dtype, per_kv):
    check([300, 77, 65, 1025], dtype=dtype, head_dim=128, heads=(2, per_kv), softcap=20.0, config=None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_compiled_portable_kernel(dtype):
    tiles = FreshConfig(16, 16, 4, 2) if dtype == torch.float32 else FreshConfig(128, 64, 8, 3)
    check([300, 1, 65, 1025], dtype=dtype, head_dim=128, heads=(2, 4), config=tiles)


@pytest.mark.gpu
def test_one_captured_graph_serves_every_batch():
    config = fresh_config(DEVICE, 128, torch.bfloat16)
    qkv = torch.randn(1000, 12, 128, device=DEVICE, dtype=torch.bfloat16)
    q, k, v = qkv.split([8, 2, 2], 1)
    query_start = torch.tensor([0, 1000, 1000, 1000], dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    fresh_attention(q, k, v, query_start, 0.1, out=out, config=config)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fresh_attention(q, k, v, query_start, 0.1, out=out, config=config)
    for starts in ([0, 300, 301, 1000], [0, 0, 5, 5], [0, 128, 256, 900]):
        query_start.copy_(torch.tensor(starts, dtype=torch.int32))
        out.fill_(torch.nan)
        graph.replay()
        for begin, end in itertools.pairwise(starts):
            if begin < end:
                want = whole_prompt(q[begin:end], k[begin:end], v[begin:end], 0.1, None, None)
                torch.testing.assert_close(out[begin:end].float(), want.float(), atol=3e-2, rtol=0)
        assert out[starts[-1] :].isnan().all()
