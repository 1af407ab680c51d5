"""The kernels of `skinny_linear`.

A program asks for its first two tiles of weights, which no kernel writes, before it waits for the kernel whose output
it reads, and from then on for the next but one whenever it has multiplied one. A thread holds pieces of 16 bytes along
K for every row of a tile, multiplies them with the same pieces of x in plain float32 arithmetic, and the sums cross
threads once a tile. Tensor cores would need at least eight rows of x.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _weight_tile(weight, tile, start, num_rows, ROWS: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """[ROWS, BLOCK] of the contiguous weight [num_rows, SIZE]; zeros outside, where nothing is read."""
    row = tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    # 64 bits for the part that can be large: the weights of a large vocabulary are more than 2³¹
    pointers = weight + (tile.to(tl.int64) * (ROWS * SIZE) + start) + (row * SIZE + column)
    inside = (tile * ROWS + row < num_rows) & (start + column < SIZE)
    return tl.load(pointers, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _products(tile, tokens, TOKENS: tl.constexpr):
    """The sums [ROWS, TOKENS] of a tile [ROWS, BLOCK] with each token's [1, BLOCK], all crossing threads at once."""
    wide = tile.to(tl.float32)
    if TOKENS == 1:
        sums = tl.sum(wide * tokens[0].to(tl.float32), 1, keep_dims=True)
    elif TOKENS == 2:
        sums = tl.sum(tl.join(wide * tokens[0].to(tl.float32), wide * tokens[1].to(tl.float32)), 1)
    else:
        even = tl.join(wide * tokens[0].to(tl.float32), wide * tokens[2].to(tl.float32))
        odd = tl.join(wide * tokens[1].to(tl.float32), wide * tokens[3].to(tl.float32))
        sums = tl.reshape(tl.sum(tl.join(even, odd), 1), [tile.shape[0], TOKENS])
    return sums


@triton.jit
def _store(out, value, tile, num_tokens, num_rows, out_stride):
    """value [ROWS, TOKENS]"""
    row = tile * value.shape[0] + tl.arange(0, value.shape[0])[:, None]
    token = tl.arange(0, value.shape[1])[None, :]
    inside = (row < num_rows) & (token < num_tokens)
    tl.store(out + token * out_stride + row, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _with_bias(value, bias, tile, num_rows, HAS_BIAS: tl.constexpr):
    if HAS_BIAS:
        row = tile * value.shape[0] + tl.arange(0, value.shape[0])[:, None]
        value += tl.load(bias + row, mask=row < num_rows, other=0.0).to(tl.float32)
    return value


@triton.jit
def _normed_tokens(
    x,
    residual,
    gain,
    residual_out,
    num_tokens,
    x_stride,
    residual_stride,
    residual_out_stride,
    eps,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The norm [1, BLOCK] of every token's sum, rounded as the kernel of the norm alone rounds; one program stores it.

    The mask has a form of which the compiler sees that pieces of 16 bytes are whole.
    """
    column = tl.arange(0, BLOCK)[None, :]
    totals = ()
    for token in tl.static_range(TOKENS):
        inside = column < (token < num_tokens).to(tl.int32) * SIZE
        value = tl.load(x + token * x_stride + column, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(residual + token * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        totals += (value.to(residual_out.dtype.element_ty),)
    normed = ()
    for token in tl.static_range(TOKENS):  # after all loads, which so are on their way at once
        value = totals[token].to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 1, keep_dims=True) / SIZE + eps)
        normed += ((value * scale * gain).to(x.dtype.element_ty),)
    for token in tl.static_range(TOKENS):
        if tl.program_id(0) == token % tl.num_programs(0):
            inside = column < (token < num_tokens).to(tl.int32) * SIZE
            tl.store(residual_out + token * residual_out_stride + column, totals[token], mask=inside)
    return normed


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def add_norm_linear_kernel(
    x,
    residual,
    norm_weight,
    weight,
    bias,
    out,
    residual_out,
    num_tokens,
    num_rows,
    x_stride,
    residual_stride,
    residual_out_stride,
    out_stride,
    eps,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Every program norms all tokens, then takes every num_programs-th tile of ROWS rows of the weight."""
    step = tl.num_programs(0)
    first = tl.program_id(0)
    tile = _weight_tile(weight, first, 0, num_rows, ROWS, BLOCK, SIZE)
    next_tile = _weight_tile(weight, first + step, 0, num_rows, ROWS, BLOCK, SIZE)
    column = tl.arange(0, BLOCK)[None, :]
    gain = tl.load(norm_weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    normed = _normed_tokens(
        x,
        residual,
        gain,
        residual_out,
        num_tokens,
        x_stride,
        residual_stride,
        residual_out_stride,
        eps,
        TOKENS,
        SIZE,
        BLOCK,
    )
    for current in range(first, tl.cdiv(num_rows, ROWS), step):
        value = _products(tile, normed, TOKENS)
        tile = next_tile
        next_tile = _weight_tile(weight, current + 2 * step, 0, num_rows, ROWS, BLOCK, SIZE)
        value = _with_bias(value, bias, current, num_rows, HAS_BIAS)
        _store(out, value, current, num_tokens, num_rows, out_stride)


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def add_norm_gated_linear_kernel(
    x,
    residual,
    norm_weight,
    weight,
    out,
    residual_out,
    num_tokens,
    num_rows,
    x_stride,
    residual_stride,
    residual_out_stride,
    out_stride,
    eps,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GELU: tl.constexpr,
    PDL: tl.constexpr,
):
    """As `add_norm_linear_kernel`; a tile is ROWS rows of the gate and those of `up`, num_rows further on."""
    step = tl.num_programs(0)
    first = tl.program_id(0)
    up_weight = weight + num_rows.to(tl.int64) * SIZE
    gate_tile = _weight_tile(weight, first, 0, num_rows, ROWS, BLOCK, SIZE)
    up_tile = _weight_tile(up_weight, first, 0, num_rows, ROWS, BLOCK, SIZE)
    next_gate_tile = _weight_tile(weight, first + step, 0, num_rows, ROWS, BLOCK, SIZE)
    next_up_tile = _weight_tile(up_weight, first + step, 0, num_rows, ROWS, BLOCK, SIZE)
    column = tl.arange(0, BLOCK)[None, :]
    gain = tl.load(norm_weight + column, mask=column < SIZE, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    normed = _normed_tokens(
        x,
        residual,
        gain,
        residual_out,
        num_tokens,
        x_stride,
        residual_stride,
        residual_out_stride,
        eps,
        TOKENS,
        SIZE,
        BLOCK,
    )
    for current in range(first, tl.cdiv(num_rows, ROWS), step):
        # rounded as the product's result in memory would be
        gate = _products(gate_tile, normed, TOKENS).to(out.dtype.element_ty).to(tl.float32)
        up = _products(up_tile, normed, TOKENS).to(out.dtype.element_ty).to(tl.float32)
        gate_tile = next_gate_tile
        up_tile = next_up_tile
        next_gate_tile = _weight_tile(weight, current + 2 * step, 0, num_rows, ROWS, BLOCK, SIZE)
        next_up_tile = _weight_tile(up_weight, current + 2 * step, 0, num_rows, ROWS, BLOCK, SIZE)
        if GELU:
            # x/2 · (1 + tanh u) = x · sigmoid(2u), u = √(2/π) · (x + 0.044715 x³)
            gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
        else:
            gate = gate * tl.sigmoid(gate)
        _store(out, gate * up, current, num_tokens, num_rows, out_stride)


@triton.jit
def _tokens(x, start, num_tokens, x_stride, TOKENS: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr):
    """The same part [1, BLOCK] of every token."""
    column = start + tl.arange(0, BLOCK)[None, :]
    parts = ()
    for token in tl.static_range(TOKENS):
        inside = column < (token < num_tokens).to(tl.int32) * SIZE
        parts += (tl.load(x + token * x_stride + column, mask=inside, other=0.0),)
    return parts


@triton.jit(do_not_specialize=["num_tokens", "num_rows"])
def linear_kernel(
    x,
    weight,
    bias,
    out,
    num_tokens,
    num_rows,
    x_stride,
    out_stride,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program takes every num_programs-th tile of ROWS rows, and each in parts of BLOCK elements of K.

    x is read again for every part: the weights pass L1 by, so x stays there.
    """
    PARTS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    step = tl.num_programs(0)
    first = tl.program_id(0)
    tile = _weight_tile(weight, first, 0, num_rows, ROWS, BLOCK, SIZE)
    next_tile = _weight_tile(weight, first + 1 // PARTS * step, 1 % PARTS * BLOCK, num_rows, ROWS, BLOCK, SIZE)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for current in range(first, tl.cdiv(num_rows, ROWS), step):
        value = tl.zeros([ROWS, TOKENS], tl.float32)
        for part in range(PARTS):
            tokens = _tokens(x, part * BLOCK, num_tokens, x_stride, TOKENS, BLOCK, SIZE)
            value += _products(tile, tokens, TOKENS)
            tile = next_tile
            next_tile = _weight_tile(
                weight,
                current + (part + 2) // PARTS * step,
                (part + 2) % PARTS * BLOCK,
                num_rows,
                ROWS,
                BLOCK,
                SIZE,
            )
        value = _with_bias(value, bias, current, num_rows, HAS_BIAS)
        _store(out, value, current, num_tokens, num_rows, out_stride)
