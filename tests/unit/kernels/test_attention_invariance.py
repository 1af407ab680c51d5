"""What `mixed_attention` gives a token is the same bits however its prompt is cut, and whatever runs beside it."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels.triton_kernels.attention_configs import TileConfig
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from tests.unit.kernels.paged import random_batch

SMALL_TILES = TileConfig(rows=16, tile=16, num_warps=4, num_stages=2)
BLOCK_SIZE = 16
# window, softcap. Compiled, the steps of a softcap are contracted differently in masked and in whole tiles, and the
# bits differ; no family that is served has one in its attention.
VARIANTS = [(None, None), (37, None)]


def bits(x: torch.Tensor) -> torch.Tensor:
    return (x + 0.0).view(torch.int32 if x.dtype == torch.float32 else torch.int16)  # 0 and -0 are the same


def check_invariance(
    length: int,
    cuts: list[list[int]],
    others: list[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    config: TileConfig | None,
    cache_dtype: torch.dtype | None = None,
) -> None:
    """One request of `length` tokens as one chunk, then in each of `cuts`, alone and between `others`.

    heads: key/value heads, query heads for each, head size; others: (query tokens, total tokens).
    """
    num_kv_heads, per_kv, head_dim = heads
    requests = [*others, (length, length), *others]
    num_blocks = 1 + sum(-(-total // BLOCK_SIZE) for _, total in requests)
    tables = random_batch(requests, BLOCK_SIZE, num_blocks).block_tables.to(DEVICE)
    torch.manual_seed(length)
    cache = torch.randn(num_blocks, 2, num_kv_heads, BLOCK_SIZE, head_dim, device=DEVICE).to(cache_dtype or dtype)
    queries = torch.randn(length, num_kv_heads * per_kv, head_dim, device=DEVICE).to(dtype)
    beside = torch.randn(sum(count for count, _ in others), *queries.shape[1:], device=DEVICE).to(dtype)

    def attend(begin: int, end: int, *, crowded: bool) -> torch.Tensor:
        """The request's tokens begin … end - 1, in one launch."""
        batch = [*others, (end - begin, end), *others] if crowded else [(end - begin, end)]
        around = beside if crowded else beside[:0]
        starts = [0]
        for count, _ in batch:
            starts.append(starts[-1] + count)
        out = mixed_attention(
            torch.cat((around, queries[begin:end], around)),
            cache,
            tables if crowded else tables[len(others) : len(others) + 1],
            torch.tensor(starts, dtype=torch.int32, device=DEVICE),
            torch.tensor([total for _, total in batch], dtype=torch.int32, device=DEVICE),
            head_dim**-0.5,
            sliding_window=window,
            softcap=softcap,
            config=config,
        )
        return out[len(around) : len(around) + end - begin]

    whole = attend(0, length, crowded=False)
    assert whole.isfinite().all()
    for cut in cuts:
        edges = [0, *cut, length]
        for crowded in (False, True):
            parts = [attend(b, e, crowded=crowded) for b, e in itertools.pairwise(edges)]
            assert torch.equal(bits(torch.cat(parts)), bits(whole)), f"cut at {cut}, crowded: {crowded}"


@pytest.mark.parametrize(("dtype", "window", "softcap"), [(torch.float32, 19, None), (torch.float16, None, 20.0)])
def test_a_token_has_the_same_bits_however_its_prompt_is_cut(dtype, window, softcap):
    check_invariance(40, [[1, 17], [39]], [(1, 20)], (1, 3, 16), dtype, window, softcap, SMALL_TILES)


@pytest.mark.gpu
@pytest.mark.parametrize(("window", "softcap"), VARIANTS)
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("heads", [(8, 4, 128), (3, 3, 64), (2, 2, 256), (2, 7, 80)])
def test_compiled_a_token_has_the_same_bits_however_its_prompt_is_cut(heads, dtype, window, softcap):
    cuts = [[1, 2, 3, 64, 65], [256], [100, 200, 300, 301, 302], [383], list(range(370, 390))]
    check_invariance(390, cuts, [(1, 700), (200, 260), (1, 1)], heads, dtype, window, softcap, None)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_so_it_has_with_an_8_bit_cache(dtype):
    check_invariance(390, [[1, 2, 3, 64], [383]], [(1, 700)], (8, 4, 128), dtype, None, None, None, torch.float8_e4m3fn)
