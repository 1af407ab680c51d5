"""What happens between the projection and attention, in one kernel: head norms, rotary embedding, the cache write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.elementwise_configs import Tile, rotary_tile
from appliance_kernels.triton_kernels.fp8_e4m3 import cache_operand, float32_to_e4m3


@triton.jit
def _normed_and_turned(
    heads,  # pointer to the first head
    weight,  # pointer, [HEAD_DIM]
    row,  # [HEADS, 1] head numbers
    present,  # [HEADS, 1] which of them exist
    cos,  # [1, HALF_PAD] float32
    sin,
    eps,
    HEAD_DIM: tl.constexpr,
    ROT_DIM: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    NORM: tl.constexpr,
):
    """The two halves that turn, [HEADS, HALF_PAD], and the rest, [HEADS, REST_PAD], in float32.

    If everything turns, the rest means nothing.
    """
    HALF: tl.constexpr = ROT_DIM // 2
    half = tl.arange(0, HALF_PAD)[None, :]
    turning = present & (half < HALF)
    first = tl.load(heads + row * HEAD_DIM + half, mask=turning, other=0.0).to(tl.float32)
    second = tl.load(heads + row * HEAD_DIM + HALF + half, mask=turning, other=0.0).to(tl.float32)
    rest = first
    tail = tl.arange(0, REST_PAD)[None, :]
    staying = present & (tail < HEAD_DIM - ROT_DIM)
    if ROT_DIM < HEAD_DIM:
        rest = tl.load(heads + row * HEAD_DIM + ROT_DIM + tail, mask=staying, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if ROT_DIM < HEAD_DIM:
            squares += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first = first * scale * tl.load(weight + half, mask=half < HALF, other=0.0).to(tl.float32)
        second = second * scale * tl.load(weight + HALF + half, mask=half < HALF, other=0.0).to(tl.float32)
        if ROT_DIM < HEAD_DIM:
            gain = tl.load(weight + ROT_DIM + tail, mask=tail < HEAD_DIM - ROT_DIM, other=0.0)
            rest = rest * scale * gain.to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin, rest


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """x, float32 or 16 bits, as it is stored in a tensor of `dtype`; uint8 stands for e4m3."""
    return float32_to_e4m3(x.to(tl.float32)) if dtype == tl.uint8 else x.to(dtype)


@triton.jit
def _store_head(
    out,  # [HEADS, 1] pointers to each head
    present,  # [HEADS, 1]
    first,
    second,
    rest,
    HEAD_DIM: tl.constexpr,
    ROT_DIM: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    STORE_REST: tl.constexpr,
):
    HALF: tl.constexpr = ROT_DIM // 2
    half = tl.arange(0, HALF_PAD)[None, :]
    turning = present & (half < HALF)
    tl.store(out + half, _rounded(first, out.dtype.element_ty), mask=turning)
    tl.store(out + HALF + half, _rounded(second, out.dtype.element_ty), mask=turning)
    if STORE_REST and ROT_DIM < HEAD_DIM:
        tail = tl.arange(0, REST_PAD)[None, :]
        tl.store(out + ROT_DIM + tail, _rounded(rest, out.dtype.element_ty), mask=present & (tail < HEAD_DIM - ROT_DIM))


@triton.jit
def _rotary_kv_kernel(
    qkv,
    q_out,
    cos_sin,
    positions,
    kv_cache,
    slot_mapping,
    q_weight,
    k_weight,
    eps,
    qkv_stride,
    q_out_stride,
    cos_sin_stride,
    block_stride,
    value_stride,
    head_stride,
    NUM_Q: tl.constexpr,
    NUM_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROT_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HALF_PAD: tl.constexpr,
    REST_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
    HEADS: tl.constexpr,
    NORM: tl.constexpr,
    IN_PLACE: tl.constexpr,
    KEYS_IN_PLACE: tl.constexpr,
):
    """One program a token and a group of HEADS heads: first the groups of queries, then those of keys and values."""
    Q_GROUPS: tl.constexpr = (NUM_Q + HEADS - 1) // HEADS
    GROUPS: tl.constexpr = Q_GROUPS + (NUM_KV + HEADS - 1) // HEADS
    token = (tl.program_id(0) // GROUPS).to(tl.int64)
    group = tl.program_id(0) % GROUPS
    slot = tl.load(slot_mapping + token).to(tl.int64)
    real = slot >= 0
    position = tl.load(positions + token, mask=real, other=0).to(tl.int64)
    half = tl.arange(0, HALF_PAD)
    angle = cos_sin + position * cos_sin_stride + half
    turning = half < tl.where(real, ROT_DIM // 2, 0)
    cos = tl.load(angle, mask=turning, other=1.0).to(tl.float32)[None, :]
    sin = tl.load(angle + ROT_DIM // 2, mask=turning, other=0.0).to(tl.float32)[None, :]
    heads = qkv + token * qkv_stride
    if group < Q_GROUPS:
        head = (group * HEADS + tl.arange(0, HEADS))[:, None]
        present = head < tl.where(real, NUM_Q, 0)
        first, second, rest = _normed_and_turned(
            heads, q_weight, head, present, cos, sin, eps, HEAD_DIM, ROT_DIM, HALF_PAD, REST_PAD, NORM
        )
        out = q_out + token * q_out_stride + head * HEAD_DIM
        # in place, what neither turns nor is normed is already there
        _store_head(out, present, first, second, rest, HEAD_DIM, ROT_DIM, HALF_PAD, REST_PAD, NORM or not IN_PLACE)
    else:
        head = ((group - Q_GROUPS) * HEADS + tl.arange(0, HEADS))[:, None]
        present = head < tl.where(real, NUM_KV, 0)
        keys = heads + NUM_Q * HEAD_DIM
        first, second, rest = _normed_and_turned(
            keys, k_weight, head, present, cos, sin, eps, HEAD_DIM, ROT_DIM, HALF_PAD, REST_PAD, NORM
        )
        dim = tl.arange(0, DIM_PAD)[None, :]
        whole = present & (dim < HEAD_DIM)
        values = tl.load(keys + (NUM_KV + head) * HEAD_DIM + dim, mask=whole, other=0.0)
        # 64 bits: a cache has more than 2³¹ elements
        place = kv_cache + (slot // BLOCK_SIZE) * block_stride + head * head_stride + (slot % BLOCK_SIZE) * HEAD_DIM
        _store_head(place, present, first, second, rest, HEAD_DIM, ROT_DIM, HALF_PAD, REST_PAD, True)
        tl.store(place + value_stride + dim, _rounded(values, kv_cache.dtype.element_ty), mask=whole)
        if KEYS_IN_PLACE:
            _store_head(
                keys + head * HEAD_DIM, present, first, second, rest, HEAD_DIM, ROT_DIM, HALF_PAD, REST_PAD, NORM
            )


def rotary_and_write_kv(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    kv_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    num_q_heads: int,
    num_kv_heads: int,
    qk_norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    *,
    q_out: torch.Tensor | None = None,
    keys_in_place: bool = False,
    config: Tile | None = None,
) -> torch.Tensor:
    """Norm and rotate queries and keys, store keys and values; meaning as `reference.rotary_and_write_kv`, with the
    rotation (Su et al. 2021, half-split layout) read from its table, in float32, and each result rounded once.

    qkv [T, (Hq + 2·Hk)·D], rows contiguous: its queries are overwritten unless `q_out` [T, Hq, D] takes them, its keys
    only with `keys_in_place`, which an attention over this step's own keys needs. cos_sin [max_len, rot_dim ≤ D]
    float32, cosines then sines; positions [T] integers; kv_cache [num_blocks, 2, Hk, block_size, D], contiguous within
    a head, of 16 or 32 bits or float8_e4m3fn, where what is beyond ±448 is stored as ±448; slot_mapping [T] integers:
    where it is negative, the token is padding, and nothing is read or written for it. qk_norm as in the reference.
    Returns the queries [T, Hq, D].
    """
    _, _, cache_heads, block_size, head_dim = kv_cache.shape
    tokens = qkv.shape[0]
    rot_dim = cos_sin.shape[1]
    if cache_heads != num_kv_heads or qkv.shape[1] != (num_q_heads + 2 * num_kv_heads) * head_dim:
        raise ValueError(
            f"qkv of shape {tuple(qkv.shape)} is not {num_q_heads} query and {num_kv_heads} key/value heads that fit a "
            f"cache of shape {tuple(kv_cache.shape)}"
        )
    if qkv.stride(1) != 1 or cos_sin.stride(1) != 1 or kv_cache.stride()[3:] != (head_dim, 1):
        raise ValueError("qkv's and cos_sin's rows and each head of a cache block must be contiguous")
    q = qkv.as_strided((tokens, num_q_heads, head_dim), (qkv.stride(0), head_dim, 1)) if q_out is None else q_out
    if q.stride()[1:] != (head_dim, 1):
        raise ValueError(f"the heads of q_out must be contiguous; its strides are {q.stride()}")
    if not tokens:
        return q
    q_weight, k_weight, eps = (qkv, qkv, 0.0) if qk_norm is None else qk_norm
    config = config or rotary_tile(num_q_heads, head_dim)
    groups = triton.cdiv(num_q_heads, config.block) + triton.cdiv(num_kv_heads, config.block)
    _rotary_kv_kernel[(tokens * groups,)](
        qkv,
        q,
        cos_sin,
        positions,
        cache_operand(kv_cache),
        slot_mapping,
        q_weight,
        k_weight,
        eps,
        qkv.stride(0),
        q.stride(0),
        cos_sin.stride(0),
        kv_cache.stride(0),
        kv_cache.stride(1),
        kv_cache.stride(2),
        NUM_Q=num_q_heads,
        NUM_KV=num_kv_heads,
        HEAD_DIM=head_dim,
        ROT_DIM=rot_dim,
        BLOCK_SIZE=block_size,
        HALF_PAD=triton.next_power_of_2(rot_dim // 2),
        REST_PAD=triton.next_power_of_2(max(head_dim - rot_dim, 1)),
        DIM_PAD=triton.next_power_of_2(head_dim),
        HEADS=config.block,
        NORM=qk_norm is not None,
        IN_PLACE=q_out is None,
        KEYS_IN_PLACE=keys_in_place,
        num_warps=config.num_warps,
    )
    return q
