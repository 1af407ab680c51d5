"""The batch-invariant matrix product is a matrix product, and its rows are the same bits in every batch.

Against float32 (float64 for float32 itself) on the same inputs, with results of size 1: what remains is the rounding of
the result, and that of the K / 16 partial sums, which matrix instructions cut instead of rounding: up to K / 16 · 2⁻²³.
"""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels.triton_kernels.attention_configs import Card, card
from appliance_kernels.triton_kernels.matmul_invariant import invariant_linear, matmul_tile, matmul_tiles

CARDS = {
    "hopper": Card(shared_memory=227 << 10, multiprocessors=132, wgmma=True),
    "ampere": Card(shared_memory=163 << 10, multiprocessors=108, wgmma=False),
    "ada": Card(shared_memory=99 << 10, multiprocessors=142, wgmma=False),
}
# Triton's interpreter has no matrix product of bfloat16; compiled, the tests marked gpu have all three.
DTYPES = ALL_DTYPES if DEVICE.type == "cuda" else [torch.float32, torch.float16]
MODEL_SHAPES = [(1536, 576), (6144, 4096), (4096, 14336), (1000, 1024)]  # (N, K), the last with a ragged tile
BATCHES = (2, 3, 16, 17, 64, 65, 128, 129, 257, 513, 1000)  # both sides of every change of tile


def operands(rows: int, shape: tuple[int, int], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and bias."""
    columns, size = shape
    x = torch.randn(rows, size, device=DEVICE).to(dtype)
    weight = (torch.randn(columns, size, device=DEVICE) / size**0.5).to(dtype)
    return x, weight, torch.randn(columns, device=DEVICE).to(dtype)


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def check_product(rows: int, shape: tuple[int, int], dtype: torch.dtype, *, with_bias: bool, tile=None) -> None:
    x, weight, bias = operands(rows, shape, dtype)
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    want = torch.nn.functional.linear(x.to(wide), weight.to(wide), bias.to(wide) if with_bias else None)
    out = torch.full((rows, shape[0]), torch.nan, dtype=dtype, device=DEVICE)
    assert invariant_linear(x, weight, bias if with_bias else None, out=out, tile=tile) is out
    torch.testing.assert_close(out.to(wide), want, atol=2e-4, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(48, 128), (50, 72)])
def test_the_product_is_that_of_linear(shape, dtype):
    check_product(1, shape, dtype, with_bias=False)
    check_product(70, shape, dtype, with_bias=True)


@pytest.mark.parametrize("kind", CARDS)
def test_every_tile_of_every_card_covers_the_whole_product(kind):
    facts = card(DEVICE) if DEVICE.type == "cuda" else CARDS[kind]  # another card's may not fit
    for dtype in DTYPES:
        for columns in (1024, 4096, 28672):
            for _, tile in matmul_tiles(columns, dtype, facts):
                check_product(tile.rows + 1, (tile.columns + 1, tile.depth + 8), dtype, with_bias=True, tile=tile)


@pytest.mark.parametrize("kind", CARDS)
def test_the_tiles_fit_the_shared_memory_of_their_card(kind):
    for dtype in ALL_DTYPES:
        for columns in (1024, 4096, 28672):
            for _, tile in matmul_tiles(columns, dtype, CARDS[kind]):
                stage = (tile.rows + tile.columns) * tile.depth * dtype.itemsize
                assert stage * tile.num_stages <= CARDS[kind].shared_memory


def test_more_rows_never_get_smaller_tiles():
    for facts in CARDS.values():
        tiles = [matmul_tile(rows, 4096, torch.bfloat16, facts) for rows in (1, 64, 65, 128, 129, 512, 513, 8192)]
        sizes = [tile.rows * tile.columns for tile in tiles]
        assert sizes == sorted(sizes)
        assert tiles[0] != tiles[-1]


def test_rows_of_wider_tensors_are_read_in_place():
    x, weight, _ = operands(5, (32, 256), torch.float32)
    part = x[:, 64:192]
    torch.testing.assert_close(invariant_linear(part, weight[:, :128]), part @ weight[:, :128].T, atol=2e-5, rtol=2e-5)


def test_no_rows_give_no_rows():
    x, weight, _ = operands(0, (32, 64), torch.bfloat16)
    assert invariant_linear(x, weight).shape == (0, 32)


def test_operands_that_do_not_fit_are_refused():
    x, weight, bias = operands(2, (32, 64), torch.float32)
    with pytest.raises(ValueError, match="doesn't fit weight"):
        invariant_linear(x[:, :32], weight)
    with pytest.raises(ValueError, match="doesn't fit weight"):
        invariant_linear(x.bfloat16(), weight)
    with pytest.raises(ValueError, match="bias"):
        invariant_linear(x, weight, bias[:16])
    with pytest.raises(ValueError, match="contiguous"):
        invariant_linear(x, torch.randn(64, 32, device=DEVICE).T)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("shape", MODEL_SHAPES)
def test_products_of_model_sizes_are_those_of_linear(shape, dtype):
    for rows in (1, 100, 300, 1000):
        check_product(rows, shape, dtype, with_bias=rows == 100)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("shape", MODEL_SHAPES)
def test_a_row_has_the_same_bits_alone_and_at_any_place_of_any_batch(shape, dtype):
    x, weight, bias = operands(max(BATCHES), shape, dtype)
    alone = torch.cat([invariant_linear(row[None], weight, bias) for row in x[:40]])
    for count in BATCHES:
        few = min(count, len(alone))
        first = invariant_linear(x[:count], weight, bias)[:few]
        assert torch.equal(bits(first), bits(alone[:few])), f"first of {count} rows"
        # the same rows last, behind others
        others = torch.randn_like(x[: count - few])
        last = invariant_linear(torch.cat((others, x[:few])), weight, bias)[count - few :]
        assert torch.equal(bits(last), bits(alone[:few])), f"last of {count} rows"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_all_tiles_of_this_card_give_the_same_bits(dtype):
    x, weight, bias = operands(200, (512, 2048), dtype)
    results = [
        bits(invariant_linear(x, weight, bias, tile=tile))
        for columns in (1024, 4096, 28672)
        for _, tile in matmul_tiles(columns, dtype, card(DEVICE))
    ]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.gpu
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 6e4])
def test_garbage_in_one_row_reaches_no_other(garbage):
    x, weight, _ = operands(130, (4096, 1024), torch.bfloat16)
    want = bits(invariant_linear(x, weight))
    x[64] = garbage
    got = bits(invariant_linear(x, weight))
    others = torch.arange(130, device=DEVICE) != 64
    assert torch.equal(got[others], want[others])
