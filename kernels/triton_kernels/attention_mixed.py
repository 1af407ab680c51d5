"""Attention of several query tokens a request, each request continuing from what its cache holds: prefill, chunks of
it, and decode rows among them, in one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_common import (
    NOTHING_SEEN,
    attend,
    check_cache_layout,
    score_factors,
)
from appliance_kernels.triton_kernels.attention_configs import TileConfig, mixed_config
from appliance_kernels.triton_kernels.fp8_e4m3 import cache_operand

SEARCH_CHUNK = 256  # requests compared at once by a program that looks for its own


@triton.jit(
    do_not_specialize=["num_requests", "window", "table_stride"],
    do_not_specialize_on_alignment=["tables", "query_start", "seq_lens"],
)
def mixed_kernel(
    q,
    kv_cache,
    tables,
    query_start,
    seq_lens,
    out,
    num_requests,
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
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # Request r has the query tiles from query_start[r] // TOKENS + r on: enough for each, found without a list.
    # The last tiles come first: within a request these read the most.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    begun = 0
    for start in range(0, num_requests, CHUNK):
        index = start + tl.arange(0, CHUNK)
        tile_start = tl.load(query_start + index, mask=index < num_requests, other=0) // TOKENS + index
        begun += tl.sum(((index < num_requests) & (tile_start <= tile)).to(tl.int32))
    request = begun - 1
    query_begin = tl.load(query_start + request)
    num_queries = tl.load(query_start + request + 1) - query_begin
    skipped = (tile - query_begin // TOKENS - request) * TOKENS  # query tokens in the request's tiles before this
    if skipped < num_queries:
        length = tl.load(seq_lens + request)
        row = tl.arange(0, ROWS)
        dim = tl.arange(0, DIM_PAD)
        query = skipped + row // HEADS_PER_KV
        exists = (row < TOKENS * HEADS_PER_KV) & (query < num_queries)
        in_q = exists[:, None] & (dim < HEAD_DIM)[None, :]
        token_row = (query_begin + query).to(tl.int64)
        q_head = head * HEADS_PER_KV + row % HEADS_PER_KV
        queries = tl.load(
            q + (token_row * q_stride_row + q_head * q_stride_head)[:, None] + dim[None, :], mask=in_q, other=0.0
        )

        computed = length - num_queries
        position = computed + query
        first_position = computed + skipped
        end = tl.minimum(first_position + TOKENS, length)  # one past the last token that the last row sees
        # begin ≤ all_begin ≤ all_end ≤ end: between all_begin and all_end each row sees every token
        begin = 0
        all_begin = 0
        first_loaded = 0
        first_seen = position * 0
        if HAS_WINDOW:
            first_seen = position - window + 1
            first_loaded = tl.maximum(first_position - window + 1, 0)
            begin = first_loaded // TILE * TILE
            all_begin = tl.minimum(tl.cdiv(tl.maximum(end - window, 0), TILE) * TILE, end)
        all_end = tl.maximum((first_position + 1) // TILE * TILE, all_begin)

        keys = kv_cache + head * (BLOCK_SIZE * HEAD_DIM)
        table = tables + request.to(tl.int64) * table_stride
        acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
        peak = tl.full([ROWS], NOTHING_SEEN, tl.float32)
        weight = tl.zeros([ROWS], tl.float32)
        if HAS_WINDOW:
            acc, peak, weight = attend(
                queries,
                acc,
                peak,
                weight,
                begin,
                all_begin,
                keys,
                NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
                block_stride,
                table,
                first_seen,
                position,
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
        acc, peak, weight = attend(
            queries,
            acc,
            peak,
            weight,
            all_begin,
            all_end,
            keys,
            NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
            block_stride,
            table,
            first_seen,
            position,
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
            all_end,
            end,
            keys,
            NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM,
            block_stride,
            table,
            first_seen,
            position,
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
        result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
        target = out + (token_row * out_stride_row + q_head * out_stride_head)[:, None] + dim[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=in_q)


def mixed_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    scale: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    out: torch.Tensor | None = None,
    config: TileConfig | None = None,
) -> torch.Tensor:
    """`reference.paged_attention` for any mix of query lengths.

    q [T, Hq, D], rows and heads of any stride; kv_cache [num_blocks, 2, Hk, block_size, D], contiguous within a block;
    block_tables [R, B], query_start [R + 1], seq_lens [R], all int32 on the device. Returns out [T, Hq, D]; rows from
    query_start[R] on (of a padded batch) are not written. Can be captured in a CUDA graph: the launch depends on
    shapes only. The heads of a group share a program's matrix rows, so a key or value is read once for all of them.
    One program reads the whole context of its queries: a decode row with a long one belongs in `decode_attention`.
    """
    check_cache_layout(q, kv_cache)
    num_tokens, num_q_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_cache.shape
    num_requests = seq_lens.shape[0]
    if config is None:
        config = mixed_config(q.device, head_dim, q.dtype)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    heads_per_kv = num_q_heads // num_kv_heads
    rows = max(config.rows, triton.next_power_of_2(heads_per_kv))
    tokens = rows // heads_per_kv
    score_scale, softcap_log2 = score_factors(scale, softcap)
    mixed_kernel[(num_tokens // tokens + num_requests, num_kv_heads)](
        q,
        cache_operand(kv_cache),
        block_tables,
        query_start,
        seq_lens,
        out,
        num_requests,
        sliding_window or 0,
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
        HEAD_DIM=head_dim,
        DIM_PAD=triton.next_power_of_2(head_dim),
        BLOCK_SIZE=block_size,
        TILE=config.tile,
        ROWS=rows,
        TOKENS=tokens,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        CHUNK=SEARCH_CHUNK,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
