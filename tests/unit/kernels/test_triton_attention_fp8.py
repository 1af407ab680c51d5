"""The Triton attention kernels over a cache in FP8: interpreted on any machine, compiled on a GPU.

Their compiled tests with each card's own tiles are those of the other caches, in `test_triton_attention`.
"""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels.triton_kernels.attention_decode import decode_attention
from tests.unit.kernels.attention_checks import (
    FP8,
    SMALL_DECODE,
    assert_close,
    check_decode,
    check_mixed,
    check_shared,
    make_batch,
)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("window", [None, 40])
def test_an_fp8_cache(dtype, window):
    shape = {"dtype": dtype, "cache_dtype": FP8, "window": window}
    check_decode([75, 20], heads=(1, 3), **shape)
    check_mixed([(7, 40), (1, 33)], heads=(1, 3), **shape)
    check_shared([65, 81, 100], 4, alone=(1,), **shape)


@pytest.mark.parametrize("head_dim", [80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32])
def test_an_fp8_cache_of_every_head_size_and_block_size(head_dim, block_size):
    shape = {"dtype": torch.float16, "cache_dtype": FP8, "head_dim": head_dim, "block_size": block_size}
    check_decode([75, 20], heads=(1, 3), softcap=5.0, **shape)
    check_mixed([(7, 40), (1, 33)], heads=(1, 3), **shape)


def test_numbers_at_the_ends_of_fp8_are_read_exactly():
    """Where one token is all that is seen, the output is its value, whatever that is."""
    codes = torch.arange(256, dtype=torch.uint8).view(4, 64).view(FP8)
    batch = make_batch([(1, 1)] * 4, heads=(1, 1), cache_dtype=FP8)
    batch.kv_cache[batch.tables[:, 0].long(), 1, 0, 0] = codes.to(DEVICE)
    got = decode_attention(batch.q, batch.kv_cache, batch.tables, batch.seq_lens, batch.scale, config=SMALL_DECODE)
    torch.testing.assert_close(got[:, 0], codes.float().to(DEVICE), rtol=0, atol=0, equal_nan=True)


def test_not_a_number_in_an_fp8_cache_is_not_hidden():
    for part in (0, 1):
        batch = make_batch([(1, 40), (1, 40)], cache_dtype=FP8)
        batch.kv_cache.view(torch.uint8)[batch.tables[0, 1], part, 1, 3] = 0x7F
        got = decode_attention(batch.q, batch.kv_cache, batch.tables, batch.seq_lens, batch.scale, config=SMALL_DECODE)
        assert got[0, 3:].isnan().all(), "the query heads of the second key/value head"
        assert got[0, :3].isfinite().all() and got[1].isfinite().all()


def test_queries_beyond_the_range_of_float16_meet_an_fp8_cache():
    """bfloat16 and float32 reach further; the token that fits such a query best is all that it sees."""
    batch = make_batch([(1, 40)], dtype=torch.bfloat16, cache_dtype=FP8, heads=(1, 1))
    batch.q.fill_(1e5)
    got = decode_attention(batch.q, batch.kv_cache, batch.tables, batch.seq_lens, batch.scale, config=SMALL_DECODE)
    assert_close(got, batch.reference())
    batch.q.fill_(torch.nan)
    got = decode_attention(batch.q, batch.kv_cache, batch.tables, batch.seq_lens, batch.scale, config=SMALL_DECODE)
    assert got.isnan().all()
