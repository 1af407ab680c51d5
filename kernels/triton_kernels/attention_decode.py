"""Attention of one new token a request over its paged keys and values: bound by reading the cache.

`attention_decode_plan` cuts the contexts of the batch into equal parts, one a program. Where a cut falls within a head,
the programs on both sides leave what they have (Dao et al. 2023, "flash decoding") and the last one to arrive puts it
together; a head that lies within one program is written at once. Hopper has a kernel of its own for the usual shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_common import (
    NOTHING_SEEN,
    attend,
    check_cache_layout,
    score_factors,
)
from appliance_kernels.triton_kernels.attention_configs import HOPPER_UNIT, DecodeConfig, decode_config
from appliance_kernels.triton_kernels.attention_decode_finish import finish
from appliance_kernels.triton_kernels.attention_decode_plan import DecodePlan, first_token, plan_decode
from appliance_kernels.triton_kernels.fp8_e4m3 import cache_operand

QUERY_ROWS = 16  # query heads are padded to this: the fewest rows of a matrix instruction


@triton.jit(
    do_not_specialize=["num_requests", "num_prefix_splits", "window", "table_stride"],
    do_not_specialize_on_alignment=[
        "tables",
        "seq_lens",
        "shared_lens",
        "unit_start",
        "first_request",
        "units_per_program",
    ],
)
def decode_kernel(
    q,
    kv_cache,
    tables,
    seq_lens,
    shared_lens,
    out,
    unit_start,
    first_request,
    units_per_program,
    counters,
    partial_acc,
    partial_stats,
    prefix_acc,
    prefix_stats,
    num_requests,
    num_prefix_splits,
    window,
    q_stride_row,
    q_stride_head,
    out_stride_row,
    out_stride_head,
    table_stride,
    block_stride,
    score_scale,
    softcap_log2,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEADS_PAD: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SHARED: tl.constexpr,
):
    program = tl.program_id(0)
    part = tl.load(units_per_program)
    begin = program * part
    end = tl.minimum(begin + part, tl.load(unit_start + num_requests) * NUM_KV_HEADS)
    request = tl.load(first_request + program)  # of a program without a part: the last, and not used

    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_PAD)
    in_q = (row < HEADS_PER_KV)[:, None] & (dim < HEAD_DIM)[None, :]
    position = begin
    while position < end:
        line_start = tl.load(unit_start + request) * NUM_KV_HEADS
        line_end = tl.load(unit_start + request + 1) * NUM_KV_HEADS
        length = tl.load(seq_lens + request)
        shared = length * 0
        if HAS_SHARED:
            shared = tl.load(shared_lens + request)
        first = first_token(length, shared, window, HAS_WINDOW, HAS_SHARED)

        units = (line_end - line_start) // NUM_KV_HEADS
        head = (position - line_start) // units
        head_start = line_start + head * units
        count = tl.minimum(head_start + units, end) - position
        token = (first // UNIT + position - head_start) * UNIT
        stop = token + count * UNIT

        q_heads = (head * HEADS_PER_KV + row)[:, None] * q_stride_head
        queries = tl.load(
            q + request.to(tl.int64) * q_stride_row + q_heads + dim[None, :],
            mask=in_q,
            other=0.0,
        )
        acc, peak, weight = attend(
            queries,
            tl.zeros([ROWS, DIM_PAD], tl.float32),
            tl.full([ROWS], NOTHING_SEEN, tl.float32),
            tl.zeros([ROWS], tl.float32),
            token,
            stop,
            kv_cache + head * (BLOCK_SIZE * HEAD_DIM),
            NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
            block_stride,
            tables + request.to(tl.int64) * table_stride,
            tl.zeros([ROWS], tl.int32) + first,
            tl.zeros([ROWS], tl.int32) + (length - 1),
            first,
            tl.minimum(length, stop),
            score_scale,
            softcap_log2,
            HEAD_DIM,
            DIM_PAD,
            BLOCK_SIZE,
            TILE,
            True,
            HAS_SOFTCAP,
        )
        if count == units:
            finish(
                acc,
                peak,
                weight,
                out,
                out_stride_row,
                out_stride_head,
                prefix_acc,
                prefix_stats,
                shared_lens,
                num_prefix_splits,
                num_requests,
                request,
                head,
                length,
                HEADS_PER_KV,
                NUM_KV_HEADS,
                HEAD_DIM,
                DIM_PAD,
                ROWS,
                HAS_SHARED,
            )
        else:
            # A program has at most two heads that it shares: the one it begins in the middle of (or at the start of),
            # which goes to its first slot, and the one it ends in, which goes to the second.
            slot = (program * 2 + (position != begin).to(tl.int32)) * HEADS_PER_KV + row
            exists = row < HEADS_PER_KV
            tl.store(partial_stats + slot * 2, peak, mask=exists)
            tl.store(partial_stats + slot * 2 + 1, weight, mask=exists)
            tl.store(partial_acc + slot[:, None] * HEAD_DIM + dim[None, :], acc, mask=in_q)
            tl.debug_barrier()  # all threads have stored before one of them says so
            left = head_start // part  # the program that the head begins in ...
            right = (head_start + units - 1) // part  # ... and the one it ends in
            counter = counters + request * NUM_KV_HEADS + head
            arrived = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu")
            if arrived == right - left:
                tl.store(counter, 0)  # ready for the next launch
                heads = tl.arange(0, HEADS_PAD)
                total = tl.zeros([HEADS_PAD, DIM_PAD], tl.float32)
                total_peak = tl.full([HEADS_PAD], NOTHING_SEEN, tl.float32)
                total_weight = tl.zeros([HEADS_PAD], tl.float32)
                for start in range(left, right + 1, MERGED):
                    part_index = start + tl.arange(0, MERGED)
                    second = (part_index == left) & (head_start != left * part)
                    source = (part_index * 2 + second.to(tl.int32))[:, None] * HEADS_PER_KV + heads[None, :]
                    there = (part_index <= right)[:, None] & (heads < HEADS_PER_KV)[None, :]
                    peaks = tl.load(partial_stats + source * 2, mask=there, other=NOTHING_SEEN, cache_modifier=".cg")
                    weights = tl.load(partial_stats + source * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
                    accs = tl.load(
                        partial_acc + source[:, :, None] * HEAD_DIM + dim[None, None, :],
                        mask=there[:, :, None] & (dim < HEAD_DIM)[None, None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                    new_peak = tl.maximum(total_peak, tl.max(peaks, 0))
                    shrink = tl.exp2(total_peak - new_peak)
                    shrinks = tl.exp2(peaks - new_peak[None, :])
                    total = total * shrink[:, None] + tl.sum(accs * shrinks[:, :, None], 0)
                    total_weight = total_weight * shrink + tl.sum(weights * shrinks, 0)
                    total_peak = new_peak
                finish(
                    total,
                    total_peak,
                    total_weight,
                    out,
                    out_stride_row,
                    out_stride_head,
                    prefix_acc,
                    prefix_stats,
                    shared_lens,
                    num_prefix_splits,
                    num_requests,
                    request,
                    head,
                    length,
                    HEADS_PER_KV,
                    NUM_KV_HEADS,
                    HEAD_DIM,
                    DIM_PAD,
                    HEADS_PAD,
                    HAS_SHARED,
                )
        position += count
        request = tl.where(position >= line_end, request + 1, request)


@dataclass(frozen=True, slots=True)
class DecodeWorkspace:
    """Scratch memory of the decode kernel, reused by launch after launch on one stream."""

    counters: torch.Tensor  # [R · Hk] int32: zero before and after each launch
    partial_acc: torch.Tensor  # [num_programs, 2, Hq / Hk, D] float32
    partial_stats: torch.Tensor  # [num_programs, 2, Hq / Hk, 2] float32: largest score and sum of exponentials


def decode_workspace(
    max_requests: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    config: DecodeConfig,
    device: torch.device,
) -> DecodeWorkspace:
    """Scratch memory for batches of up to `max_requests`; its size depends on the card, not on context lengths."""
    parts = (config.num_programs, 2, num_q_heads // num_kv_heads)
    return DecodeWorkspace(
        counters=torch.zeros(max_requests * num_kv_heads, dtype=torch.int32, device=device),
        partial_acc=torch.empty(*parts, head_dim, dtype=torch.float32, device=device),
        partial_stats=torch.empty(*parts, 2, dtype=torch.float32, device=device),
    )


def decode_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    plan: DecodePlan | None = None,
    workspace: DecodeWorkspace | None = None,
    config: DecodeConfig | None = None,
) -> torch.Tensor:
    """`reference.paged_attention` where each of R requests has one query token, its last.

    q [R, Hq, D], rows and heads of any stride; kv_cache [num_blocks, 2, Hk, block_size, D], contiguous within a block,
    of q's dtype or float8_e4m3fn;
    block_tables [R, B] int32; seq_lens [R] int32 on the device. Rows of length 0 behind the last request pad the batch:
    what they get means nothing. One among others gets zeros. Returns out [R, Hq, D].
    Can be captured in a CUDA graph: the launch depends on shapes only. `plan` (of the same sliding window) and
    `workspace` are made here if not given; one plan serves all layers of a step.
    """
    check_cache_layout(q, kv_cache)
    if config is None:
        config = plan.config if plan is not None else decode_config(q.device, q.shape[2], kv_cache.dtype)
    if plan is None:
        plan = plan_decode(seq_lens, kv_cache.shape[2], config, sliding_window=sliding_window)
    if workspace is None:
        workspace = decode_workspace(*q.shape[:2], *kv_cache.shape[2:5:2], config, q.device)
    return launch_decode(q, kv_cache, block_tables, seq_lens, scale, softcap, out, plan, workspace, None)


def launch_decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    softcap: float | None,
    out: torch.Tensor | None,
    plan: DecodePlan,
    workspace: DecodeWorkspace,
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """The decode kernel itself; `prefix` is acc [S, R, Hq, D] and stats [S, R, Hq, 2] of the shared tokens."""
    num_requests, num_q_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    config = plan.config
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    heads_per_kv = num_q_heads // num_kv_heads
    heads_pad = triton.next_power_of_2(heads_per_kv)
    dim_pad = triton.next_power_of_2(head_dim)
    score_scale, softcap_log2 = score_factors(scale, softcap)
    shared = plan.num_shared_tokens
    if config.hopper:
        from appliance_kernels.triton_kernels.attention_decode_hopper import fits_hopper, launch_hopper

        if fits_hopper(q, kv_cache) and config.unit_tokens == HOPPER_UNIT:
            launch_hopper(
                q,
                kv_cache,
                block_tables,
                seq_lens,
                shared,
                out,
                (plan.unit_start, plan.first_request, plan.units_per_program),
                (workspace.counters, workspace.partial_acc, workspace.partial_stats),
                prefix,
                (score_scale, softcap_log2),
                num_programs=config.num_programs,
                ring=config.hopper,
                sliding_window=plan.sliding_window,
                has_softcap=softcap is not None,
            )
            return out
    prefix_acc, prefix_stats = prefix or (workspace.partial_acc, workspace.partial_stats)
    decode_kernel[(config.num_programs,)](
        q,
        cache_operand(kv_cache),
        block_tables,
        seq_lens,
        seq_lens if shared is None else shared,
        out,
        plan.unit_start,
        plan.first_request,
        plan.units_per_program,
        workspace.counters,
        workspace.partial_acc,
        workspace.partial_stats,
        prefix_acc,
        prefix_stats,
        num_requests,
        prefix_acc.shape[0] if prefix else 0,
        plan.sliding_window or 0,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        block_tables.stride(0),
        kv_cache.stride(0),
        score_scale,
        softcap_log2,
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEADS_PAD=heads_pad,
        HEAD_DIM=head_dim,
        DIM_PAD=dim_pad,
        BLOCK_SIZE=block_size,
        TILE=config.tile,
        UNIT=config.unit_tokens,
        ROWS=max(QUERY_ROWS, heads_pad),
        MERGED=max(1, min(32, 8192 // (heads_pad * dim_pad))),
        HAS_WINDOW=plan.sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        HAS_SHARED=shared is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
