"""Root mean square norm (Zhang & Sennrich 2019), alone or with the residual addition before it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.elementwise_configs import Tile, norm_tile

MAX_SIZE = 16384


@triton.jit
def _rms_norm_kernel(
    x,
    residual,
    weight,
    out,
    residual_out,
    x_stride,
    residual_stride,
    out_stride,
    residual_out_stride,
    eps,
    ADD: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row. The row is read whole before anything is written, so outputs may be the inputs."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < SIZE
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        total = value.to(residual_out.dtype.element_ty)
        tl.store(residual_out + row * residual_out_stride + column, total, mask=inside)
        value = total.to(tl.float32)  # the norm of what is stored: the next layer reads it rounded
    scale = tl.rsqrt(tl.sum(value * value, 0) / SIZE + eps)
    tl.store(out + row * out_stride + column, (value * scale * gain).to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, *, out: torch.Tensor | None = None, config: Tile | None = None
) -> torch.Tensor:
    """Meaning as `reference.rms_norm`, computed in float32, rounded once.

    x [..., H] with H ≤ 16384, bfloat16, float16 or float32; weight [H], of x's dtype or float32. `out`, of x's shape
    and dtype, may be x itself. Returns `out`, or a new tensor.
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    rows, out_rows = _rows(x), _rows(out)
    _launch(rows, rows, weight, eps, out_rows, out_rows, config, add=False)
    return out


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    out: torch.Tensor | None = None,
    residual_out: torch.Tensor | None = None,
    config: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Meaning as `reference.add_rms_norm`, in one pass: reads two rows, writes two.

    Shapes and dtypes as `rms_norm`; `residual` as x. `residual_out=residual` updates it in place; `out` may be x.
    Returns (normed, new residual).
    """
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if residual_out is None:
        residual_out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_rows(x), _rows(residual), weight, eps, _rows(out), _rows(residual_out), config, add=True)
    return out, residual_out


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x [..., H] as [T, H] without a copy."""
    return x.view(-1, x.shape[-1])


def _launch(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
    config: Tile | None,
    *,
    add: bool,
) -> None:
    """All [T, H] with any row stride."""
    tokens, size = x.shape
    if size > MAX_SIZE:
        raise ValueError(f"a row of {size} elements is too wide to be normed at once (at most {MAX_SIZE})")
    if not (x.stride(1) == residual.stride(1) == out.stride(1) == residual_out.stride(1) == weight.stride(0) == 1):
        raise ValueError("rms_norm needs rows and weight that are contiguous")
    if not tokens:
        return
    config = config or norm_tile(size)
    _rms_norm_kernel[(tokens,)](
        x,
        residual,
        weight,
        out,
        residual_out,
        x.stride(0),
        residual.stride(0),
        out.stride(0),
        residual_out.stride(0),
        eps,
        ADD=add,
        SIZE=size,
        BLOCK=config.block,
        num_warps=config.num_warps,
    )
