"""What the paged attention kernels share: one pass of online softmax over a range of tokens, and checks of arguments.

Scores are kept in units of log2, so that the exponentials are `exp2`, which is one instruction on the device.

An FP8 cache (E4M3), which the kernels get as bytes, is multiplied in float16: that holds its numbers exactly, and
queries and probabilities more exactly than bfloat16.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.fp8_e4m3 import e4m3_pairs_to_float16

LOG2_E = math.log2(math.e)
NOTHING_SEEN = tl.constexpr(-1.0e30)  # the running maximum before the first score; finite, so that differences are


@triton.jit
def even_and_odd(x):
    """[N, D] → its even and its odd columns, each [N, D / 2]."""
    return tl.split(x.reshape(x.shape[0], x.shape[1] // 2, 2))


@triton.jit
def clamped_float16(x):
    """x within float16's finite range; NaN stays NaN."""
    return tl.clamp(x.to(tl.float32), -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL).to(tl.float16)


@triton.jit
def attend(
    q,  # [ROWS, DIM_PAD], queries of one key/value head
    acc,  # [ROWS, DIM_PAD] float32, values weighted so far
    peak,  # [ROWS] float32, largest score so far
    weight,  # [ROWS] float32, sum of the exponentials so far
    begin,  # first token, a multiple of TILE
    end,  # one past the last token
    keys,  # pointer to the head's keys in block 0; to uint8: e4m3
    value_offset,  # elements from a key to its value
    block_stride,  # elements from block to block
    table,  # pointer to the request's block table
    first_seen,  # [ROWS] first and ...
    last_seen,  # [ROWS] ... last token that each row sees
    load_begin,  # tokens outside load_begin ≤ n < load_end are never read: what lies there may be NaN
    load_end,
    score_scale,  # to units of log2; with a softcap c: scale / c
    softcap_log2,  # c · log2(e)
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022) over the tokens begin … end - 1 of one request.

    Without MASKED, each row sees all of these tokens and `end - begin` is a multiple of TILE.
    """
    FP8: tl.constexpr = keys.dtype.element_ty == tl.uint8
    # An FP8 cache is loaded as pairs of neighbouring dimensions, and its even and odd dimensions are multiplied apart.
    LOADED: tl.constexpr = HEAD_DIM // 2 if FP8 else HEAD_DIM
    LOADED_PAD: tl.constexpr = DIM_PAD // 2 if FP8 else DIM_PAD
    if FP8:
        keys = keys.to(tl.pointer_type(tl.int16), bitcast=True)
        value_offset = value_offset // 2
        block_stride = block_stride // 2
        q_even, q_odd = even_and_odd(clamped_float16(q))
        acc_even, acc_odd = even_and_odd(acc)
    in_tile = tl.arange(0, TILE)
    dim = tl.arange(0, LOADED_PAD)
    # Block ids are read one tile ahead, so that no load of the loop waits for another: otherwise the compiler's
    # pipeline gives half of its stages to the table.
    token = begin + in_tile
    block = tl.load(table + token // BLOCK_SIZE, mask=(token >= load_begin) & (token < load_end), other=0)
    for start in range(begin, end, TILE):
        token = start + in_tile
        present = (token >= load_begin) & (token < load_end)
        # in 64 bits: a cache has more than 2³¹ elements
        place = block.to(tl.int64) * block_stride + (token % BLOCK_SIZE) * LOADED
        pointers = keys + place[:, None] + dim[None, :]
        block = tl.load(table + (token + TILE) // BLOCK_SIZE, mask=token + TILE < load_end, other=0)
        if LOADED != LOADED_PAD:
            loaded = (dim < LOADED)[None, :]
            if MASKED:
                loaded = loaded & present[:, None]
            k = tl.load(pointers, mask=loaded, other=0.0)
            v = tl.load(pointers + value_offset, mask=loaded, other=0.0)
        elif MASKED:
            k = tl.load(pointers, mask=present[:, None], other=0.0)
            v = tl.load(pointers + value_offset, mask=present[:, None], other=0.0)
        else:
            k = tl.load(pointers)
            v = tl.load(pointers + value_offset)

        if FP8:
            k_even, k_odd = e4m3_pairs_to_float16(k)
            scores = tl.dot(q_odd, tl.trans(k_odd), tl.dot(q_even, tl.trans(k_even)))
        else:
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        factor = score_scale
        if HAS_SOFTCAP:
            # tanh x = 1 - 2 / (1 + e²ˣ): right at both ends, where the exponential is 0 or infinite
            scores = softcap_log2 * (1.0 - 2.0 / (1.0 + tl.exp2(scores * score_scale * (2.0 * 1.4426950408889634))))
            factor = 1.0
        if MASKED:
            seen = (token[None, :] >= first_seen[:, None]) & (token[None, :] <= last_seen[:, None])
            scores = tl.where(seen & present[None, :], scores, float("-inf"))
        # The scale is positive, so it can wait until after the maximum: then it costs nothing, in a fused multiply-add.
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        p = tl.exp2(scores * factor - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        weight = weight * shrink + tl.sum(p, 1)
        if FP8:
            v_even, v_odd = e4m3_pairs_to_float16(v)
            acc_even = tl.dot(p.to(tl.float16), v_even, acc_even * shrink[:, None])
            acc_odd = tl.dot(p.to(tl.float16), v_odd, acc_odd * shrink[:, None])
        else:
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
        peak = new_peak
    if FP8:
        acc = tl.join(acc_even, acc_odd).reshape(acc.shape[0], DIM_PAD)
    return acc, peak, weight


def score_factors(scale: float, softcap: float | None) -> tuple[float, float]:
    """`score_scale` and `softcap_log2` of `attend`; ValueError unless both are positive."""
    if scale <= 0 or (softcap is not None and softcap <= 0):
        raise ValueError(f"scale and softcap must be positive; they are {scale} and {softcap}")
    if softcap is None:
        return scale * LOG2_E, 0.0
    return scale / softcap, softcap * LOG2_E


def check_cache_layout(q: torch.Tensor, kv_cache: torch.Tensor) -> None:
    """Raise ValueError unless q [T, Hq, D] and kv_cache [num_blocks, 2, Hk, block_size, D] fit each other."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    if kv_cache.stride()[1:] != (num_kv_heads * block_size * head_dim, block_size * head_dim, head_dim, 1):
        raise ValueError(f"kv_cache must be contiguous within a block; its strides are {kv_cache.stride()}")
    if q.shape[2] != head_dim or q.shape[1] % num_kv_heads or q.stride(2) != 1:
        raise ValueError(
            f"q of shape {tuple(q.shape)}, strides {q.stride()} doesn't fit {num_kv_heads} KV heads of {head_dim}"
        )
    if kv_cache.dtype not in (q.dtype, torch.float8_e4m3fn):
        raise ValueError(f"kv_cache is {kv_cache.dtype}; it must be {q.dtype} as q is, or torch.float8_e4m3fn")
