"""The kernels whose tiles depend on the card, each with the tiles of this one and the least that fills its loops."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance_kernels.triton_kernels.attention_configs import card, decode_config, mixed_config
from appliance_kernels.triton_kernels.matmul_invariant import matmul_tiles
from tests.unit.kernels import test_attention_fresh
from tests.unit.kernels.attention_checks import check_decode, check_mixed, check_shared
from tests.unit.kernels.test_matmul_invariant import check_product

pytestmark = pytest.mark.gpu
DTYPES = [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [80, 128])
@pytest.mark.parametrize("window", [None, 100])
def test_attention(head_dim, dtype, window):
    shape = {"heads": (2, 4), "head_dim": head_dim, "dtype": dtype, "window": window}
    check_decode([1, 1500, 400], config=decode_config(DEVICE, head_dim, dtype), **shape)
    check_mixed([(1, 300), (150, 290)], config=mixed_config(DEVICE, head_dim, dtype), **shape)
    test_attention_fresh.check([1, 300, 0, 130], config=None, **shape)
    check_shared([300 + 7 * i for i in range(5)], 16, alone=(3,), **shape)


@pytest.mark.parametrize("head_dim", [80, 128])
def test_attention_over_an_fp8_cache(head_dim):
    dtype, cache_dtype = torch.bfloat16, torch.float8_e4m3fn
    shape = {"heads": (2, 4), "head_dim": head_dim, "dtype": dtype, "cache_dtype": cache_dtype}
    check_decode([1, 1500, 400], config=decode_config(DEVICE, head_dim, cache_dtype), **shape)
    check_mixed([(1, 300), (150, 290)], config=mixed_config(DEVICE, head_dim, dtype), **shape)
    check_shared([300 + 7 * i for i in range(5)], 16, alone=(3,), **shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_invariant_products(dtype):
    for columns in (1024, 4096, 28672):
        for _, tile in matmul_tiles(columns, dtype, card(DEVICE)):
            check_product(tile.rows + 1, (tile.columns + 1, 5 * tile.depth + 8), dtype, with_bias=True, tile=tile)
            check_product(tile.rows, (2 * tile.columns, 6 * tile.depth), dtype, with_bias=False, tile=tile)
