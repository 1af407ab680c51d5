"""Products with one to four rows are what the norm, the product and the activation after one another are.

The sum of the residual is compared bit for bit. Products, which are of size 1, are compared with float64 on the
reference's norm, rounded as the kernel rounds it: what remains is the rounding of the result (a relative `eps`, where
it falls the other way), and the few elements of the norm that were rounded the other way: each is off by eps, and by
eps / √K in its product with a weight of size 1 / √K.
"""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.triton_kernels.attention_configs import Card
from appliance_kernels.triton_kernels.skinny_linear import (
    add_norm_gated_linear,
    add_norm_linear,
    skinny_linear,
    supports_overlap,
)
from appliance_kernels.triton_kernels.skinny_tiles import SkinnyTile, skinny_tile

EPS = 1e-5
CASES = [  # tokens, K, N, dtype: N and K ragged, aligned, wider than the smallest block
    *((tokens, 100, 21, dtype) for tokens in (1, 2, 3, 4) for dtype in ALL_DTYPES),
    *((3, 576, 24, dtype) for dtype in ALL_DTYPES),
    (1, 1032, 5, torch.bfloat16),
    (4, 1032, 5, torch.float16),
]
MODEL_SHAPES = [(4096, 6144), (1024, 4096), (576, 960), (5120, 1000), (8192, 1024)]
FEW_PROGRAMS = SkinnyTile(rows=2, block=1024, num_warps=4, most_programs=3)


def operands(tokens: int, size: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x, residual, norm weight, weight, bias. x and residual are parts of wider rows."""
    x = torch.randn(tokens, size + 8, device=DEVICE).to(dtype)[:, :size]
    residual = torch.randn(tokens, size + 16, device=DEVICE).to(dtype)[:, :size]
    norm_weight = (1 + torch.randn(size, device=DEVICE) / 4).to(dtype)
    weight = (torch.randn(rows, size, device=DEVICE) / size**0.5).to(dtype)
    return x, residual, norm_weight, weight, torch.randn(rows, device=DEVICE).to(dtype)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


def assert_rounded(out: torch.Tensor, want: torch.Tensor, *, roundings: int = 1) -> None:
    eps = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), want, rtol=roundings * eps, atol=max(roundings * eps / 4, 1e-5))


def rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 as `dtype`: to nearest, but Triton's interpreter cuts to bfloat16."""
    if DEVICE.type == "cpu" and dtype == torch.bfloat16:
        return (value.float().view(torch.int32) & -(1 << 16)).view(torch.float32).to(dtype)
    return value.to(dtype)


def checked_norm(new_residual, x, residual, norm_weight) -> torch.Tensor:
    """The norm of the sum, whose bits are compared first."""
    assert torch.equal(new_residual, rounded(x.float() + residual.float(), x.dtype))
    return rounded(reference.rms_norm(new_residual.float(), norm_weight.float(), EPS), x.dtype)


def check_norm_linear(tokens, size, rows, dtype, *, with_bias=False, overlap=False, tile=None) -> None:
    x, residual, norm_weight, weight, bias = operands(tokens, size, rows, dtype)
    bias = bias if with_bias else None
    out, new_residual = add_norm_linear(x, residual, norm_weight, EPS, weight, bias, overlap=overlap, tile=tile)
    normed = checked_norm(new_residual, x, residual, norm_weight)
    assert_rounded(out, product(normed, weight, bias))


def check_gated(tokens, size, rows, dtype, *, gelu=False, overlap=False, tile=None) -> None:
    x, residual, norm_weight, weight, _ = operands(tokens, size, 2 * rows, dtype)
    out, new_residual = add_norm_gated_linear(
        x, residual, norm_weight, EPS, weight, gelu=gelu, overlap=overlap, tile=tile
    )
    normed = checked_norm(new_residual, x, residual, norm_weight)
    activate = reference.gelu_tanh_and_mul if gelu else reference.silu_and_mul
    want = activate(rounded(product(normed, weight), dtype).double())
    assert_rounded(out, want, roundings=3)  # gate and up are rounded on the way; both are about 1


def check_linear(tokens, size, rows, dtype, *, with_bias=False, overlap=False, tile=None) -> None:
    x, _, _, weight, bias = operands(tokens, size, rows, dtype)
    bias = bias if with_bias else None
    wide_out = torch.full((tokens, rows + 3), torch.nan, dtype=dtype, device=DEVICE)
    out = wide_out[:, :rows]
    assert skinny_linear(x, weight, bias, out=out, overlap=overlap, tile=tile) is out
    assert_rounded(out, product(x, weight, bias))
    assert wide_out[:, rows:].isnan().all()


@pytest.mark.parametrize(("tokens", "size", "rows", "dtype"), CASES)
def test_the_product_of_the_norm_is_that_of_the_kernels_one_by_one(tokens, size, rows, dtype):
    check_norm_linear(tokens, size, rows, dtype)


@pytest.mark.parametrize(("tokens", "size", "rows", "dtype"), CASES)
def test_the_gated_product_is_that_of_the_kernels_one_by_one(tokens, size, rows, dtype):
    check_gated(tokens, size, rows, dtype)


def test_the_gate_can_be_gelu():
    check_gated(3, 100, 21, torch.float32, gelu=True)


@pytest.mark.parametrize(
    ("tokens", "size", "rows", "dtype"), [*CASES, (1, 4100, 6, torch.bfloat16), (4, 4100, 6, torch.float16)]
)
def test_the_product_alone_is_that_of_linear_and_leaves_what_is_beside_it(tokens, size, rows, dtype):
    check_linear(tokens, size, rows, dtype)


@pytest.mark.parametrize("tokens", [1, 4])
def test_a_bias_is_added_before_the_result_is_rounded(tokens):
    check_norm_linear(tokens, 100, 37, torch.bfloat16, with_bias=True)
    check_linear(tokens, 100, 37, torch.bfloat16, with_bias=True)


@pytest.mark.parametrize("rows", [5, 12, 15])
def test_programs_walk_over_any_number_of_tiles(rows):
    check_norm_linear(2, 576, rows, torch.float32, tile=FEW_PROGRAMS)
    check_gated(2, 576, rows, torch.float32, tile=FEW_PROGRAMS)
    check_linear(2, 576, rows, torch.float32, tile=FEW_PROGRAMS)
    check_linear(2, 2500, rows, torch.float32, tile=FEW_PROGRAMS)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize("shape", [(1024, 1024), (4096, 6144), (14336, 4096), (4096, 128256)])
def test_a_tile_gives_every_multiprocessor_work_and_fits_its_registers(shape, tokens, dtype):
    size, rows = shape
    hopper = Card(shared_memory=227 << 10, multiprocessors=132, wgmma=True)
    tile = skinny_tile(tokens, rows, size, dtype, hopper)
    programs = tile.num_programs(rows)
    assert programs >= 120 and programs * tile.num_warps <= 132 * 16
    # weights of two tiles; a thread may have 128 registers of 4 bytes
    assert 2 * tile.rows * tile.block * dtype.itemsize <= 256 * tile.num_warps * 32


def test_operands_that_do_not_fit_are_refused():
    x, residual, norm_weight, weight, bias = operands(2, 64, 8, torch.float32)
    with pytest.raises(ValueError, match="1 to 4 rows, not 5"):
        skinny_linear(torch.zeros(5, 64, device=DEVICE), weight)
    with pytest.raises(ValueError, match="doesn't fit weight"):
        skinny_linear(x.half(), weight)
    with pytest.raises(ValueError, match="bias"):
        skinny_linear(x, weight, bias[:4])
    with pytest.raises(ValueError, match="contiguous weight"):
        skinny_linear(x[:, ::2], weight[:, ::2])
    with pytest.raises(ValueError, match="residual"):
        add_norm_linear(x, residual[:1], norm_weight, EPS, weight)
    with pytest.raises(ValueError, match="too wide"):
        wide = torch.zeros(1, 8200, device=DEVICE)
        add_norm_linear(wide, wide, wide[0], EPS, torch.zeros(1, 8200, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4])
def test_products_of_models_are_right_with_and_without_overlap(tokens, dtype):
    for overlap in {False, supports_overlap(DEVICE)}:
        for size, rows in MODEL_SHAPES:
            check_norm_linear(tokens, size, rows, dtype, with_bias=True, overlap=overlap)
            check_gated(tokens, size, rows, dtype, overlap=overlap)
            check_linear(tokens, size, rows, dtype, with_bias=True, overlap=overlap)
        check_linear(tokens, 14336, 4096, dtype, overlap=overlap)
        check_linear(tokens, 1024, 151936, dtype, overlap=overlap)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 4])
def test_kernels_that_overlap_in_a_graph_see_what_the_ones_before_them_wrote(tokens):
    """A chain in which every input is the output of the kernel before: the same bits as without overlap."""
    if not supports_overlap(DEVICE):
        pytest.skip("needs programmatic dependent launch (sm_90)")
    size, layers = 1024, 24
    x, residual, norm_weight, _, _ = operands(tokens, size, 1, torch.bfloat16)
    weights = [operands(1, size, 2 * size, torch.bfloat16)[3] for _ in range(layers)]
    start = x.clone()

    def chain(overlap: bool) -> torch.Tensor:
        hidden, total = start * 1, residual  # not one of ours: it can't let the next start early
        for weight in weights:
            hidden, total = add_norm_linear(hidden, total, norm_weight, EPS, weight[:size], overlap=overlap)
            hidden = skinny_linear(hidden, weight[size:], overlap=overlap)
            hidden, total = add_norm_gated_linear(hidden, total, norm_weight, EPS, weight, gelu=False, overlap=overlap)
        return torch.cat((hidden, total))

    chain(True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = chain(True)
    for seed in range(20):
        start.copy_(torch.randn(start.shape, generator=torch.Generator().manual_seed(seed)))
        want = chain(False)
        for _ in range(3):
            graph.replay()
        assert torch.equal(replayed, want)
