"""Decode attention where many requests begin with the same tokens (Juravsky et al. 2024, "Hydragen").

The queries of all requests attend to the shared tokens together, as a matrix product that reads them once. Then the
decode kernel attends to what is each request's own, and adds the two by their log-sum-exp.
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
from appliance_kernels.triton_kernels.attention_configs import (
    DecodeConfig,
    TileConfig,
    card,
    decode_config,
    mixed_config,
)
from appliance_kernels.triton_kernels.attention_decode import DecodeWorkspace, decode_workspace, launch_decode
from appliance_kernels.triton_kernels.attention_decode_plan import DecodePlan, plan_decode
from appliance_kernels.triton_kernels.fp8_e4m3 import cache_operand

MOST_SPLITS = 16


@triton.jit(
    do_not_specialize=["num_requests", "window"],
    do_not_specialize_on_alignment=["prefix_table", "seq_lens", "shared_lens"],
)
def prefix_kernel(
    q,
    kv_cache,
    prefix_table,
    seq_lens,
    shared_lens,
    prefix_acc,
    prefix_stats,
    num_requests,
    window,
    q_stride_row,
    q_stride_head,
    block_stride,
    score_scale,
    softcap_log2,
    NUM_KV_HEADS: tl.constexpr,
    HEADS_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    split = tl.program_id(1)
    head = tl.program_id(2)
    pair = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_PAD)
    request = pair // HEADS_PER_KV
    exists = request < num_requests
    in_q = exists[:, None] & (dim < HEAD_DIM)[None, :]
    q_head = head * HEADS_PER_KV + pair % HEADS_PER_KV
    shared = tl.load(shared_lens + request, mask=exists, other=0)
    end = tl.max(shared, 0)
    first_seen = shared * 0
    first_loaded = 0
    if HAS_WINDOW:
        first_seen = tl.load(seq_lens + request, mask=exists, other=0) - window
        first_loaded = tl.maximum(tl.min(tl.where(shared > 0, first_seen, end), 0), 0)
    first_tile = first_loaded // TILE
    tiles = tl.maximum(tl.cdiv(end, TILE) - first_tile, 0)
    per_split = tl.cdiv(tiles, tl.num_programs(1))
    begin = (first_tile + split * per_split) * TILE
    end_of_split = tl.minimum(begin + per_split * TILE, end)
    # What rows that share nothing get is never read, so it doesn't matter what they see.
    whole = tl.maximum(end_of_split // TILE * TILE, begin)
    if HAS_WINDOW:
        whole = begin

    queries = tl.load(
        q + (request.to(tl.int64) * q_stride_row + q_head * q_stride_head)[:, None] + dim[None, :], mask=in_q, other=0.0
    )
    keys = kv_cache + head * (BLOCK_SIZE * HEAD_DIM)
    acc, peak, weight = attend(
        queries,
        tl.zeros([ROWS, DIM_PAD], tl.float32),
        tl.full([ROWS], NOTHING_SEEN, tl.float32),
        tl.zeros([ROWS], tl.float32),
        begin,
        whole,
        keys,
        NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
        block_stride,
        prefix_table,
        first_seen,
        shared,
        first_loaded,
        end,
        score_scale,
        softcap_log2,
        HEAD_DIM,
        DIM_PAD,
        BLOCK_SIZE,
        TILE,
        False,
        HAS_SOFTCAP,
    )
    acc, peak, weight = attend(
        queries,
        acc,
        peak,
        weight,
        whole,
        end_of_split,
        keys,
        NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
        block_stride,
        prefix_table,
        first_seen,
        shared,
        first_loaded,
        end,
        score_scale,
        softcap_log2,
        HEAD_DIM,
        DIM_PAD,
        BLOCK_SIZE,
        TILE,
        True,
        HAS_SOFTCAP,
    )
    target = (split * num_requests + request) * (NUM_KV_HEADS * HEADS_PER_KV) + q_head
    tl.store(prefix_stats + target * 2, peak, mask=exists)
    tl.store(prefix_stats + target * 2 + 1, weight, mask=exists)
    if begin < end_of_split:
        tl.store(prefix_acc + target.to(tl.int64)[:, None] * HEAD_DIM + dim[None, :], acc, mask=in_q)


@dataclass(frozen=True, slots=True)
class SharedPrefixWorkspace:
    """Scratch memory of both passes, for batches of exactly R requests."""

    decode: DecodeWorkspace
    prefix_acc: torch.Tensor  # [splits, R, Hq, D] float32
    prefix_stats: torch.Tensor  # [splits, R, Hq, 2] float32: largest score and sum of exponentials


def prefix_splits(
    num_requests: int, num_q_heads: int, num_kv_heads: int, config: TileConfig, device: torch.device
) -> int:
    """Into how many pieces the shared tokens are cut, so that the pieces of all queries fill the card once."""
    query_tiles = triton.cdiv(num_requests * (num_q_heads // num_kv_heads), config.rows) * num_kv_heads
    return max(1, min(MOST_SPLITS, card(device).multiprocessors // query_tiles))


def shared_prefix_workspace(
    num_requests: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_splits: int,
    config: DecodeConfig,
    device: torch.device,
) -> SharedPrefixWorkspace:
    """Scratch memory for batches of `num_requests`; `num_splits` as `prefix_splits` gives it."""
    shape = (num_splits, num_requests, num_q_heads)
    return SharedPrefixWorkspace(
        decode=decode_workspace(num_requests, num_q_heads, num_kv_heads, head_dim, config, device),
        prefix_acc=torch.empty(*shape, head_dim, dtype=torch.float32, device=device),
        prefix_stats=torch.empty(*shape, 2, dtype=torch.float32, device=device),
    )


def shared_prefix_decode_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    *,
    prefix_table: torch.Tensor,
    num_shared_tokens: torch.Tensor,
    sliding_window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    plan: DecodePlan | None = None,
    workspace: SharedPrefixWorkspace | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """`decode_attention` where requests share their first tokens, which are read once for all of them.

    prefix_table [B] int32: blocks of the shared tokens. num_shared_tokens [R] int32 on the device: how many tokens of
    that table each request begins with, which is one number P < length for all that share it and 0 for the others
    (their block tables alone count); all 0 is a plain decode. Everything else is as for `decode_attention`; `plan`,
    if given, was made with these num_shared_tokens. Can be captured in a CUDA graph: P is read on the device.
    """
    check_cache_layout(q, kv_cache)
    num_requests, num_q_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    if plan is None:
        plan = plan_decode(
            seq_lens,
            num_kv_heads,
            decode_config(q.device, head_dim, kv_cache.dtype),
            sliding_window=sliding_window,
            num_shared_tokens=num_shared_tokens,
        )
    if config is None:
        config = mixed_config(q.device, head_dim, q.dtype)
    if workspace is None:
        splits = prefix_splits(num_requests, num_q_heads, num_kv_heads, config, q.device)
        workspace = shared_prefix_workspace(
            num_requests, num_q_heads, num_kv_heads, head_dim, splits, plan.config, q.device
        )
    num_splits = workspace.prefix_acc.shape[0]
    heads_per_kv = num_q_heads // num_kv_heads
    score_scale, softcap_log2 = score_factors(scale, softcap)
    prefix_kernel[(triton.cdiv(num_requests * heads_per_kv, config.rows), num_splits, num_kv_heads)](
        q,
        cache_operand(kv_cache),
        prefix_table,
        seq_lens,
        num_shared_tokens,
        workspace.prefix_acc,
        workspace.prefix_stats,
        num_requests,
        sliding_window or 0,
        q.stride(0),
        q.stride(1),
        kv_cache.stride(0),
        score_scale,
        softcap_log2,
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEAD_DIM=head_dim,
        DIM_PAD=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=block_size,
        TILE=config.tile,
        ROWS=config.rows,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    prefix = (workspace.prefix_acc, workspace.prefix_stats)
    return launch_decode(q, kv_cache, block_tables, seq_lens, scale, softcap, out, plan, workspace.decode, prefix)
