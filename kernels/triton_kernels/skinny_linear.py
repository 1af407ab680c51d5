"""Matrix products with one to four rows, alone or after the addition and norm that a decoder layer has before them.

So few rows leave a product bound by the weights' way from memory, and by what surrounds it: at batch 1 a layer of a
small model is over before a launch is. So a product here norms its own input, which costs less than a launch, and can
start while the kernel before it still runs (programmatic dependent launch, CUDA C++ Programming Guide; from sm_90 on).
"""

from __future__ import annotations

from functools import cache

import torch
import triton

from appliance_kernels.triton_kernels.attention_configs import card
from appliance_kernels.triton_kernels.skinny_kernels import (
    add_norm_gated_linear_kernel,
    add_norm_linear_kernel,
    linear_kernel,
)
from appliance_kernels.triton_kernels.skinny_tiles import SkinnyTile, skinny_tile

MAX_TOKENS = 4
MAX_NORM_SIZE = 8192


@cache
def supports_overlap(device: torch.device) -> bool:
    """Whether `overlap=True` works on the device: programmatic dependent launch needs sm_90."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def add_norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    overlap: bool = False,
    tile: SkinnyTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reference.add_rms_norm`, and the product of the norm with `weight` [N, K] transposed, plus bias [N].

    x and residual [T, K], T ≤ 4 and K ≤ 8192, rows contiguous; norm_weight [K] of x's dtype or float32; weight
    contiguous, all bfloat16, float16 or float32. The sum and the norm are rounded to x's dtype as by the kernels they
    replace; products are summed in float32 and rounded once. Returns (y [T, N], new residual [T, K]), new tensors:
    every program reads the residual, so it can't be updated in place.

    `overlap` starts the kernel while the one before it in the stream still runs; the weights must have been written
    before that one started. Can be captured in a CUDA graph. Raises ValueError for shapes, dtypes or strides that
    don't fit.
    """
    num_rows = weight.shape[0]
    _check(x, weight, bias)
    _check_norm(x, residual, norm_weight)
    out = torch.empty(x.shape[0], num_rows, dtype=x.dtype, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = tile or skinny_tile(x.shape[0], num_rows, x.shape[1], x.dtype, card(x.device), whole_rows=True)
    add_norm_linear_kernel[(tile.num_programs(num_rows),)](
        x,
        residual,
        norm_weight,
        weight,
        weight if bias is None else bias,
        out,
        residual_out,
        x.shape[0],
        num_rows,
        x.stride(0),
        residual.stride(0),
        residual_out.stride(0),
        out.stride(0),
        eps,
        TOKENS=triton.next_power_of_2(x.shape[0]),
        SIZE=x.shape[1],
        ROWS=tile.rows,
        BLOCK=tile.block,
        HAS_BIAS=bias is not None,
        num_warps=tile.num_warps,
        **_launch_options(overlap),
    )
    return out, residual_out


def add_norm_gated_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    gate_up_weight: torch.Tensor,
    *,
    gelu: bool,
    overlap: bool = False,
    tile: SkinnyTile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`add_norm_linear` with gate_up_weight [2·I, K], and `reference.silu_and_mul` of it, or `gelu_tanh_and_mul`.

    Gate and up are rounded to x's dtype before the activation. Returns (gated [T, I], new residual [T, K]).
    """
    num_rows = gate_up_weight.shape[0] // 2
    _check(x, gate_up_weight, None)
    _check_norm(x, residual, norm_weight)
    out = torch.empty(x.shape[0], num_rows, dtype=x.dtype, device=x.device)
    residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tile = tile or skinny_tile(x.shape[0], num_rows, x.shape[1], x.dtype, card(x.device), whole_rows=True, matrices=2)
    add_norm_gated_linear_kernel[(tile.num_programs(num_rows),)](
        x,
        residual,
        norm_weight,
        gate_up_weight,
        out,
        residual_out,
        x.shape[0],
        num_rows,
        x.stride(0),
        residual.stride(0),
        residual_out.stride(0),
        out.stride(0),
        eps,
        TOKENS=triton.next_power_of_2(x.shape[0]),
        SIZE=x.shape[1],
        ROWS=tile.rows,
        BLOCK=tile.block,
        GELU=gelu,
        num_warps=tile.num_warps,
        **_launch_options(overlap),
    )
    return out, residual_out


def skinny_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    overlap: bool = False,
    tile: SkinnyTile | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]; returns [T, N] in x's dtype, or `out`.

    T ≤ 4, any K; `overlap`, dtypes, rounding and errors as in `add_norm_linear`.
    """
    num_rows = weight.shape[0]
    _check(x, weight, bias)
    out = torch.empty(x.shape[0], num_rows, dtype=x.dtype, device=x.device) if out is None else out
    if out.stride(1) != 1:
        raise ValueError("a matrix product needs rows of out that are contiguous")
    tile = tile or skinny_tile(x.shape[0], num_rows, x.shape[1], x.dtype, card(x.device))
    linear_kernel[(tile.num_programs(num_rows),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        x.shape[0],
        num_rows,
        x.stride(0),
        out.stride(0),
        TOKENS=triton.next_power_of_2(x.shape[0]),
        SIZE=x.shape[1],
        ROWS=tile.rows,
        BLOCK=tile.block,
        HAS_BIAS=bias is not None,
        num_warps=tile.num_warps,
        **_launch_options(overlap),
    )
    return out


def _launch_options(overlap: bool) -> dict[str, bool]:
    return {"PDL": True, "launch_pdl": True} if overlap else {"PDL": False}


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    if not 1 <= x.shape[0] <= MAX_TOKENS:
        raise ValueError(f"a skinny product has 1 to {MAX_TOKENS} rows, not {x.shape[0]}")
    if weight.shape[1] != x.shape[1] or weight.dtype != x.dtype:
        raise ValueError(f"x {list(x.shape)} {x.dtype} doesn't fit weight {list(weight.shape)} {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {list(bias.shape)} doesn't fit weight {list(weight.shape)}")
    if x.stride(1) != 1 or not weight.is_contiguous():
        raise ValueError("a skinny product needs contiguous rows of x and a contiguous weight")


def _check_norm(x: torch.Tensor, residual: torch.Tensor, norm_weight: torch.Tensor) -> None:
    if residual.shape != x.shape or residual.dtype != x.dtype or norm_weight.shape != x.shape[1:]:
        raise ValueError(
            f"x {list(x.shape)} {x.dtype}, residual {list(residual.shape)} {residual.dtype} and norm weight "
            f"{list(norm_weight.shape)} don't fit each other"
        )
    if x.shape[1] > MAX_NORM_SIZE:
        raise ValueError(f"a row of {x.shape[1]} elements is too wide to be normed here (at most {MAX_NORM_SIZE})")
    if residual.stride(1) != 1 or norm_weight.stride(0) != 1:
        raise ValueError("a norm needs contiguous rows of the residual and a contiguous weight")
