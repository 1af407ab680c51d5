"""Attention of prompts whose whole context is in this step: keys and values are rows of the step's own projection.

Nothing is gathered from the cache by blocks, so tiles are plain rectangles; and each step's query tiles are put in
order first, those that see most keys before the others, so that no long one is left for the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_common import NOTHING_SEEN, score_factors
from appliance_kernels.triton_kernels.attention_configs import card, mixed_config

PLAN_CHUNK = 256  # requests that a program of the plan looks at at once
ITEM = 4  # int32 numbers of a query tile in the plan


@dataclass(frozen=True, slots=True)
class FreshConfig:
    """How the kernel is cut."""

    rows: int  # query tokens of one head in a program
    tile: int  # keys read at once
    num_warps: int
    num_stages: int  # for Hopper's kernel at least 2
    hopper: bool = False  # the kernel for Hopper, whose rows (128) and warps (4) are given


@cache
def fresh_config(device: torch.device, head_dim: int, dtype: torch.dtype) -> FreshConfig:
    """Hopper's own kernel for the head sizes that it was made for, otherwise the portable one."""
    if card(device).wgmma and dtype != torch.float32 and head_dim in (64, 128):
        return FreshConfig(rows=128, tile=min(128, 16384 // head_dim), num_warps=4, num_stages=2, hopper=True)
    tiles = mixed_config(device, head_dim, dtype)
    return FreshConfig(tiles.rows, tiles.tile, tiles.num_warps, tiles.num_stages)


@dataclass(frozen=True, slots=True)
class FreshPlan:
    """The query tiles of a step, in the order in which they are worked on; the same for every layer."""

    items: torch.Tensor  # [most tiles, ITEM] int32: first row, its position in the request, row after the request's end
    count: torch.Tensor  # [1] int32: how many there are
    rows: int  # of a tile


@triton.jit(do_not_specialize=["num_requests"], do_not_specialize_on_alignment=["query_start"])
def plan_kernel(query_start, items, count, num_requests, ROWS: tl.constexpr, ITEM: tl.constexpr, CHUNK: tl.constexpr):
    """One program a tile. Request r has places from (query_start[r] - query_start[0]) // ROWS + r on: enough for each,
    found without a list. A tile's place in the order is the number of those before it, which every program counts."""
    place = tl.program_id(0)
    base = tl.load(query_start)
    begun = 0
    for start in range(0, num_requests, CHUNK):
        index = start + tl.arange(0, CHUNK)
        begin = tl.load(query_start + index, mask=index < num_requests, other=0) - base
        begun += tl.sum(((index < num_requests) & (begin // ROWS + index <= place)).to(tl.int32))
    request = begun - 1
    first = tl.load(query_start + request)
    end = tl.load(query_start + request + 1)
    level = place - (first - base) // ROWS - request  # tiles of the request before this one
    before = 0
    total = 0
    for start in range(0, num_requests, CHUNK):
        index = start + tl.arange(0, CHUNK)
        exists = index < num_requests
        begin = tl.load(query_start + index, mask=exists, other=0)
        tiles = tl.cdiv(tl.load(query_start + index + 1, mask=exists, other=0) - begin, ROWS)
        longer = tl.maximum(tiles - level - 1, 0) + ((index < request) & (tiles > level)).to(tl.int32)
        before += tl.sum(longer)
        total += tl.sum(tiles)
    if first + level * ROWS < end:
        item = items + before * ITEM
        tl.store(item, first + level * ROWS)
        tl.store(item + 1, level * ROWS)
        tl.store(item + 2, end)
    if place == 0:
        tl.store(count, total)


def plan_fresh(query_start: torch.Tensor, num_tokens: int, config: FreshConfig) -> FreshPlan:
    """The plan for requests whose rows are query_start[r] … query_start[r + 1] - 1 (int32 on the device, [R + 1]), of
    which there are at most `num_tokens`. The launch depends on shapes only."""
    num_requests = query_start.shape[0] - 1
    most = num_tokens // config.rows + num_requests
    plan = FreshPlan(
        items=torch.empty(most, ITEM, dtype=torch.int32, device=query_start.device),
        count=torch.empty(1, dtype=torch.int32, device=query_start.device),
        rows=config.rows,
    )
    plan_kernel[(most,)](
        query_start, plan.items, plan.count, num_requests, ROWS=config.rows, ITEM=ITEM, CHUNK=PLAN_CHUNK, num_warps=4
    )
    return plan


@triton.jit
def attend_rows(
    q,  # [ROWS, DIM_PAD], queries of one head
    acc,  # [ROWS, DIM_PAD] float32, values weighted so far
    peak,  # [ROWS] float32, largest score so far
    weight,  # [ROWS] float32, sum of the exponentials so far
    begin,  # first key's position, a multiple of TILE
    end,  # one past the last
    k,  # pointers to the request's first key and value of the head
    v,
    k_stride,  # elements from row to row
    v_stride,
    position,  # [ROWS] of the queries
    length,  # of the request
    window,
    score_scale,  # to units of log2; with a softcap c: scale / c
    softcap_log2,  # c · log2(e)
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Online softmax (Milakov & Gimelshein 2018; Dao et al. 2022) over keys begin … end - 1. Without MASKED, each row
    sees all of them and `end - begin` is a multiple of TILE."""
    in_tile = tl.arange(0, TILE)
    dim = tl.arange(0, DIM_PAD)
    for start in range(begin, end, TILE):
        key = start + in_tile
        row = key.to(tl.int64)[:, None]
        if MASKED or HEAD_DIM != DIM_PAD:
            # What lies beyond the request is never read: it may be NaN.
            loaded = (key < length)[:, None] & (dim < HEAD_DIM)[None, :]
            keys = tl.load(k + row * k_stride + dim[None, :], mask=loaded, other=0.0)
            values = tl.load(v + row * v_stride + dim[None, :], mask=loaded, other=0.0)
        else:
            keys = tl.load(k + row * k_stride + dim[None, :])
            values = tl.load(v + row * v_stride + dim[None, :])
        scores = tl.dot(q, tl.trans(keys), input_precision="ieee")
        factor = score_scale
        if HAS_SOFTCAP:
            # tanh x = 1 - 2 / (1 + e²ˣ): right at both ends, where the exponential is 0 or infinite
            scores = softcap_log2 * (1.0 - 2.0 / (1.0 + tl.exp2(scores * score_scale * (2.0 * 1.4426950408889634))))
            factor = 1.0
        if MASKED:
            seen = key[None, :] <= position[:, None]
            if HAS_WINDOW:
                seen = seen & (key[None, :] > (position - window)[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        # The scale is positive, so it can wait until after the maximum: then it costs nothing, in a fused multiply-add.
        new_peak = tl.maximum(peak, tl.max(scores, 1) * factor)
        p = tl.exp2(scores * factor - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        weight = weight * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee")
        peak = new_peak
    return acc, peak, weight


@triton.jit(do_not_specialize=["window"], do_not_specialize_on_alignment=["items", "count"])
def fresh_kernel(
    q,
    k,
    v,
    items,
    count,
    out,
    q_stride_row,
    k_stride_row,
    v_stride_row,
    out_stride_row,
    out_stride_head,
    window,
    score_scale,
    softcap_log2,
    NUM_Q_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    ITEM: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    # The heads of a tile are neighbours in the grid, so that those of a group find each other's keys in L2.
    head = tl.program_id(0) % NUM_Q_HEADS
    place = tl.program_id(0) // NUM_Q_HEADS
    if place < tl.load(count):
        item = items + place * ITEM
        first_row = tl.load(item)
        first_position = tl.load(item + 1)
        length = tl.load(item + 2) - first_row + first_position
        index = tl.arange(0, ROWS)
        dim = tl.arange(0, DIM_PAD)
        position = first_position + index
        row = (first_row + index).to(tl.int64)
        in_q = (position < length)[:, None] & (dim < HEAD_DIM)[None, :]
        queries = tl.load(q + row[:, None] * q_stride_row + head * HEAD_DIM + dim[None, :], mask=in_q, other=0.0)

        # begin ≤ all_begin ≤ all_end ≤ end: between all_begin and all_end each row sees every key
        end = tl.minimum(first_position + ROWS, length)
        begin = 0
        all_begin = 0
        if HAS_WINDOW:
            begin = tl.maximum(first_position - window + 1, 0) // TILE * TILE
            all_begin = tl.minimum(tl.cdiv(tl.maximum(end - window, 0), TILE) * TILE, end)
        all_end = tl.maximum((first_position + 1) // TILE * TILE, all_begin)

        start_row = (first_row - first_position).to(tl.int64)
        k += start_row * k_stride_row + head // HEADS_PER_KV * HEAD_DIM
        v += start_row * v_stride_row + head // HEADS_PER_KV * HEAD_DIM
        acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
        peak = tl.full([ROWS], NOTHING_SEEN, tl.float32)
        weight = tl.zeros([ROWS], tl.float32)
        for part in tl.static_range(0 if HAS_WINDOW else 1, 3):
            part_begin = begin if part == 0 else (all_begin if part == 1 else all_end)
            part_end = all_begin if part == 0 else (all_end if part == 1 else end)
            acc, peak, weight = attend_rows(
                queries,
                acc,
                peak,
                weight,
                part_begin,
                part_end,
                k,
                v,
                k_stride_row,
                v_stride_row,
                position,
                length,
                window,
                score_scale,
                softcap_log2,
                HEAD_DIM,
                DIM_PAD,
                TILE,
                part != 1,
                HAS_WINDOW,
                HAS_SOFTCAP,
            )
        result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
        target = out + row[:, None] * out_stride_row + head * out_stride_head + dim[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=in_q)


def check_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raise ValueError unless q [T, Hq, D] and k, v [T, Hk, D] fit each other."""
    if k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes of q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} don't fit")
    if any(heads.stride()[1:] != (heads.shape[2], 1) for heads in (q, k, v)):
        raise ValueError("the heads in each row of q, k and v must be contiguous")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q is {q.dtype}, k {k.dtype} and v {v.dtype}; they must be the same")


def fresh_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_start: torch.Tensor,
    scale: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    plan: FreshPlan | None = None,
    config: FreshConfig | None = None,
) -> torch.Tensor:
    """Causal attention of each row over its own request's rows up to itself, in float32 within.

    q [T, Hq, D], k and v [T, Hk, D], rows of any stride, heads contiguous: views of the fused projection's output,
    rotated. query_start [R + 1] int32 on the device: request r has rows query_start[r] … query_start[r + 1] - 1, which
    are its positions 0, 1, …; it may have none. Rows outside all requests are neither read nor written. sliding_window
    and softcap as in `reference.paged_attention`. Returns out [T, Hq, D]. `plan`, from `plan_fresh` with the same
    config, spares planning once for each layer. Can be captured in a CUDA graph: launches depend on shapes only.
    """
    check_rows(q, k, v)
    num_tokens, num_q_heads, head_dim = q.shape
    if config is None:
        config = fresh_config(q.device, head_dim, q.dtype)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if not num_tokens:
        return out
    if plan is None:
        plan = plan_fresh(query_start, num_tokens, config)
    if plan.rows != config.rows:
        raise ValueError(f"the plan is for tiles of {plan.rows} rows, and the kernel's have {config.rows}")
    if config.hopper:
        from appliance_kernels.triton_kernels.attention_fresh_hopper import launch_fresh_hopper

        launch_fresh_hopper(
            q,
            k,
            v,
            plan.items,
            plan.count,
            out,
            score_factors(scale, softcap),
            sliding_window=sliding_window,
            has_softcap=softcap is not None,
            tile=config.tile,
            num_stages=config.num_stages,
        )
        return out
    score_scale, softcap_log2 = score_factors(scale, softcap)
    fresh_kernel[(plan.items.shape[0] * num_q_heads,)](
        q,
        k,
        v,
        plan.items,
        plan.count,
        out,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        out.stride(1),
        sliding_window or 0,
        score_scale,
        softcap_log2,
        NUM_Q_HEADS=num_q_heads,
        HEADS_PER_KV=num_q_heads // k.shape[1],
        HEAD_DIM=head_dim,
        DIM_PAD=triton.next_power_of_2(head_dim),
        ROWS=config.rows,
        TILE=config.tile,
        ITEM=ITEM,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
