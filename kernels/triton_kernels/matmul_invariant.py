"""Matrix products whose rows do not depend on each other: the same bits for a row whatever else is in the batch.

cuBLAS chooses kernel, tile and split of K by the number of rows, and with them the order of the additions. Here an
element is one chain of additions over K in ascending order, made by one instruction for each step of K, for every
number of rows (batch invariance: He & Thinking Machines Lab 2025).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_configs import Card, card


@dataclass(frozen=True, slots=True)
class MatmulTile:
    """What one program computes, and how."""

    rows: int  # of x
    columns: int  # rows of the weight
    depth: int  # elements of K read at once
    num_warps: int
    num_stages: int


@triton.jit(do_not_specialize=["num_rows"])
def _invariant_matmul_kernel(
    x,
    weight,
    bias,
    out,
    num_rows,
    num_columns,
    size,
    x_stride,
    weight_stride,
    out_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_DEPTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """One program a tile of the output. Tiles of up to GROUP tiles of rows that read the same weights are neighbours,
    so the weights are read from memory once."""
    row_tiles = tl.cdiv(num_rows, ROWS)
    column_tiles = tl.cdiv(num_columns, COLUMNS)
    in_group = GROUP * column_tiles
    first = tl.program_id(0) // in_group * GROUP
    group_rows = tl.minimum(row_tiles - first, GROUP)
    row_tile = first + tl.program_id(0) % in_group % group_rows
    column_tile = tl.program_id(0) % in_group // group_rows

    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    row_here = row < num_rows
    column_here = column < num_columns
    # 64 bits: the weights of a large vocabulary are more than 2³¹
    x_pointers = x + row.to(tl.int64)[:, None] * x_stride + depth[None, :]
    weight_pointers = weight + column.to(tl.int64)[:, None] * weight_stride + depth[None, :]
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, size, DEPTH):
        if WHOLE_DEPTH:
            a = tl.load(x_pointers, mask=row_here[:, None], other=0.0)
        else:
            a = tl.load(x_pointers, mask=row_here[:, None] & (start + depth < size)[None, :], other=0.0)
        if WHOLE_DEPTH and WHOLE_COLUMNS:
            b = tl.load(weight_pointers)
        elif WHOLE_DEPTH:
            b = tl.load(weight_pointers, mask=column_here[:, None], other=0.0)
        else:
            b = tl.load(weight_pointers, mask=column_here[:, None] & (start + depth < size)[None, :], other=0.0)
        acc = tl.dot(a, tl.trans(b), acc, input_precision="ieee")
        x_pointers += DEPTH
        weight_pointers += DEPTH
    if HAS_BIAS:
        acc += tl.load(bias + column, mask=column_here, other=0.0).to(tl.float32)[None, :]
    target = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=row_here[:, None] & column_here[None, :])


def invariant_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
    tile: MatmulTile | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]; returns [T, N] in x's dtype, or `out`.

    bfloat16, float16 or float32, x and weight of one dtype, rows contiguous; sums in float32, rounded once. A row of
    the result depends on that row of x alone, bit for bit, and not on T: GPU tests hold the tiles to it. Can be
    captured in a CUDA graph. Raises ValueError for shapes, dtypes or strides that don't fit.
    """
    num_rows, size = x.shape
    num_columns = weight.shape[0]
    if weight.shape[1] != size or weight.dtype != x.dtype:
        raise ValueError(f"x {list(x.shape)} {x.dtype} doesn't fit weight {list(weight.shape)} {weight.dtype}")
    if bias is not None and bias.shape != (num_columns,):
        raise ValueError(f"bias {list(bias.shape)} doesn't fit weight {list(weight.shape)}")
    out = torch.empty(num_rows, num_columns, dtype=x.dtype, device=x.device) if out is None else out
    if x.stride(1) != 1 or weight.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError("a matrix product needs rows of x, weight and out that are contiguous")
    if not num_rows:
        return out
    tile = tile or matmul_tile(num_rows, num_columns, x.dtype, card(x.device))
    _invariant_matmul_kernel[(triton.cdiv(num_rows, tile.rows) * triton.cdiv(num_columns, tile.columns),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        num_columns,
        size,
        x.stride(0),
        weight.stride(0),
        out.stride(0),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=8,
        WHOLE_COLUMNS=num_columns % tile.columns == 0,
        WHOLE_DEPTH=size % tile.depth == 0,
        HAS_BIAS=bias is not None,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out


def compile_tiles(weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """Compile what `invariant_linear` may need for this weight, so that no request waits for it later."""
    for _, tile in matmul_tiles(weight.shape[0], weight.dtype, card(weight.device)):
        invariant_linear(weight.new_zeros(1, weight.shape[1]), weight, bias, tile=tile)


def matmul_tile(num_rows: int, num_columns: int, dtype: torch.dtype, facts: Card) -> MatmulTile:
    """The tile for a product with `num_rows` rows: a choice of speed only, all of a card's tiles give the same bits."""
    *smaller, largest = matmul_tiles(num_columns, dtype, facts)
    return next((tile for most_rows, tile in smaller if num_rows <= most_rows), largest[1])


@cache
def matmul_tiles(num_columns: int, dtype: torch.dtype, facts: Card) -> tuple[tuple[int, MatmulTile], ...]:
    """(most rows, tile) in ascending order; the last is for any number of rows.

    The tiles of one dtype and card are made of one kind of matrix instruction: on Hopper `wgmma` with 64 rows (so no
    tile has fewer), elsewhere `mma` with 16 rows. Both take 16 of K at a time, whatever `depth` is, and only the number
    of columns of a `wgmma` differs. In float32, where there are no such instructions, K is taken one by one.
    """
    if dtype == torch.float32:
        return ((0, MatmulTile(32, 32, 32, num_warps=4, num_stages=3)),)
    # few rows: the weights' stream is the limit, so there must be a tile for each multiprocessor
    narrow = 16 if num_columns <= 2048 else 32 if num_columns <= 8192 else 64
    if facts.wgmma:
        return (
            (128, MatmulTile(64, narrow, 128, num_warps=4, num_stages=3 if narrow == 64 else 4)),
            (512, MatmulTile(64, 128, 64, num_warps=4, num_stages=4)),
            (0, MatmulTile(128, 256, 64, num_warps=8, num_stages=3)),
        )
    return (
        (64, MatmulTile(16, narrow, 128, num_warps=4, num_stages=4)),
        (0, MatmulTile(128, 128, 32, num_warps=8, num_stages=4)),
    )
