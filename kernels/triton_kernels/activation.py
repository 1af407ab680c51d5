"""Gated activations: SwiGLU and GeGLU (Shazeer 2020)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.elementwise_configs import Tile, activation_tile


@triton.jit
def _gate_kernel(x, out, x_stride, out_stride, GELU: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """One program a tile of a row."""
    TILES: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // TILES).to(tl.int64)
    column = (tl.program_id(0) % TILES) * BLOCK + tl.arange(0, BLOCK)
    inside = column < SIZE
    gate = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + SIZE + column, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        # x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π) · (x + 0.044715 x³)
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        gate = gate * tl.sigmoid(gate)
    tl.store(out + row * out_stride + column, (gate * up).to(out.dtype.element_ty), mask=inside)


def silu_and_mul(x: torch.Tensor, *, out: torch.Tensor | None = None, config: Tile | None = None) -> torch.Tensor:
    """Meaning as `reference.silu_and_mul`, computed in float32, rounded once.

    x [T, 2·I], gate and up side by side, bfloat16, float16 or float32, rows contiguous; `out` [T, I] of x's dtype.
    """
    return _launch(x, out, config, gelu=False)


def gelu_tanh_and_mul(x: torch.Tensor, *, out: torch.Tensor | None = None, config: Tile | None = None) -> torch.Tensor:
    """Meaning as `reference.gelu_tanh_and_mul`; the rest as `silu_and_mul`."""
    return _launch(x, out, config, gelu=True)


def _launch(x: torch.Tensor, out: torch.Tensor | None, config: Tile | None, *, gelu: bool) -> torch.Tensor:
    tokens, size = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, size, dtype=x.dtype, device=x.device) if out is None else out
    if x.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError("gated activations need contiguous rows")
    if tokens:
        config = config or activation_tile(size)
        _gate_kernel[(tokens * triton.cdiv(size, config.block),)](
            x,
            out,
            x.stride(0),
            out.stride(0),
            GELU=gelu,
            SIZE=size,
            BLOCK=config.block,
            num_warps=config.num_warps,
        )
    return out
