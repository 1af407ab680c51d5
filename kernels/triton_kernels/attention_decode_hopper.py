"""Attention of one new token a request for Hopper: two warps stream the cache, a warpgroup multiplies what came.

The streaming warps, one for keys and one for values, copy blocks into a ring in shared memory and go on into the next
line, which is what a request and key/value head are here, while the warpgroup still works on the last: reading never
stops within a program. The roles of a product are exchanged: tokens are the rows of the matrix instruction, and the
query heads its columns, of which it can have as few as eight. Written in Gluon, the layer of Triton in which layouts
and barriers are explicit.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from appliance_kernels.triton_kernels.attention_configs import HOPPER_UNIT, HopperRing
from appliance_kernels.triton_kernels.attention_decode_hopper_parts import (
    NOTHING_SEEN,
    all_left,
    all_parts,
    finish,
    leave_part,
)
from appliance_kernels.triton_kernels.attention_decode_hopper_stream import (
    PANEL,
    PANEL_DIMS,
    UNIT,
    read_line,
    read_part,
    stream,
)

WARPS = 4  # that multiply
CONSUMER_WARPS = gl.constexpr(WARPS)
PRODUCER_REGISTERS = gl.constexpr(56)
HEAD_DIMS = (64, 128, 256)
MOST_HEADS_PER_KV = 16
REGISTERS = 128  # a thread's at launch: two programs of two warpgroups, with the streaming warps', share 65,536


@gluon.jit
def _barriers(NUMBER: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
def _clear_rows(tile, end, LAYOUT: gl.constexpr):
    """Zero the values of tokens from `end` on: a probability of 0 times what lies there need not be 0."""
    CHUNK: gl.constexpr = 64  # what registers hold
    END: gl.constexpr = tile.shape[0]
    row = gl.arange(0, CHUNK, gl.SliceLayout(1, LAYOUT))
    for start in gl.static_range(0, END, CHUNK):
        if start + CHUNK > end:
            chunk = tile.slice(start, CHUNK)
            value = chunk.load(LAYOUT)
            chunk.store(gl.where((start + row < end)[:, None], value, gl.zeros_like(value)))


@gluon.jit
def _queries(query, request, head, LAYOUT: gl.constexpr, HEADS_PER_KV: gl.constexpr, SHAPE: gl.constexpr):
    q, q_stride_row, q_stride_head = query
    row = gl.arange(0, SHAPE[0], gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, SHAPE[1], gl.SliceLayout(0, LAYOUT))
    rows = q + request.to(gl.int64) * q_stride_row + ((head * HEADS_PER_KV + row) * q_stride_head)[:, None]
    return gl.load(rows + dim[None, :], mask=(row < HEADS_PER_KV)[:, None], other=0.0)


@gluon.jit
def _consume(
    query,
    ring,
    q_tile,
    p_tile,
    plan,
    partial,
    prefix,
    scales,
    output,
    NUM_KV_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    UNITS: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
    HAS_SHARED: gl.constexpr,
):
    """One warpgroup: the online softmax of each line of this program's part, and what becomes of it."""
    tiles, full, empty = ring
    score_scale, softcap_log2 = scales
    TILE: gl.constexpr = p_tile.shape[1]
    HEADS: gl.constexpr = q_tile.shape[0]
    HEAD_DIM: gl.constexpr = q_tile.shape[1]
    DTYPE: gl.constexpr = q_tile.dtype
    LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [CONSUMER_WARPS, 1], [16, HEADS, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    COLUMN: gl.constexpr = gl.SliceLayout(0, LAYOUT)
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [CONSUMER_WARPS, 1], [1, 0])
    SHAPE: gl.constexpr = (HEADS, HEAD_DIM)
    factor = score_scale
    if HAS_SOFTCAP:
        factor = 1.0
    program = gl.program_id(0)
    in_tile = gl.arange(0, TILE, ROW)
    p_columns = p_tile.permute((1, 0))
    begin, end, part, line = read_part(plan, NUM_KV_HEADS)
    request, head, line_begin, units, first_unit, first, length = read_line(
        plan, line, NUM_KV_HEADS, HAS_WINDOW, HAS_SHARED
    )
    queries = _queries(query, request, head, MEMORY, HEADS_PER_KV, SHAPE)
    position = begin
    used = 0
    while position < end:
        count = gl.minimum(line_begin + units, end) - position
        token = (first_unit + position - line_begin) * UNIT
        stop = gl.minimum(token + count * UNIT, length)
        q_tile.store(queries)
        fence_async_shared()
        gl.thread_barrier()
        line += 1
        # read now, so that the next line begins without waiting for them
        (
            next_request,
            next_head,
            next_line_begin,
            next_units,
            next_first_unit,
            next_first,
            next_length,
        ) = read_line(plan, line, NUM_KV_HEADS, HAS_WINDOW, HAS_SHARED)
        queries = _queries(query, next_request, next_head, MEMORY, HEADS_PER_KV, SHAPE)

        peak = gl.full([HEADS], NOTHING_SEEN, gl.float32, COLUMN)
        weights = gl.zeros([TILE, HEADS], gl.float32, LAYOUT)
        acc = gl.zeros([HEAD_DIM, HEADS], gl.float32, LAYOUT)
        for _tile in range((count + UNITS - 1) // UNITS):
            stage = used % STAGES
            values = tiles.index(stage * 2 + 1)
            mbarrier.wait(full.index(stage), used // STAGES & 1)
            scores = warpgroup_mma(
                tiles.index(stage * 2),
                q_tile.permute((1, 0)),
                gl.zeros([TILE, HEADS], gl.float32, LAYOUT),
                use_acc=False,
            )
            if HAS_SOFTCAP:
                # tanh x = 1 - 2 / (1 + e²ˣ): right at both ends, where the exponential is 0 or infinite
                scores = softcap_log2 * (
                    1.0 - 2.0 / (1.0 + gl.exp2(scores * (score_scale * (2.0 * 1.4426950408889634))))
                )
            seen = token + in_tile < stop
            if HAS_WINDOW or HAS_SHARED:
                seen = seen & (token + in_tile >= first)
            scores = gl.where(seen[:, None], scores, float("-inf"))
            new_peak = gl.maximum(peak, gl.max(scores, 0) * factor)
            p = gl.exp2(scores * factor - new_peak[None, :])
            shrink = gl.exp2(peak - new_peak)
            weights = weights * shrink[None, :] + p  # summed over tokens only at the end of the line
            peak = new_peak
            p_columns.store(p.to(DTYPE))
            if token + TILE > stop:
                _clear_rows(values, stop - token, MEMORY)
            fence_async_shared()
            gl.thread_barrier()
            acc = warpgroup_mma(values.permute((1, 0)), p_columns, acc * shrink[None, :])
            mbarrier.arrive(empty.index(stage))
            token += TILE
            used += 1
        weight = gl.sum(weights, 0)

        place = (request, head, length, line_begin, units)
        if count == units:
            finish(acc, peak, weight, output, prefix, plan, place, LAYOUT, HEADS_PER_KV, NUM_KV_HEADS, HAS_SHARED)
        else:
            # A program has at most two lines that it shares: the one it begins in the middle of (or at the start of),
            # which goes to its first slot, and the one it ends in, which goes to the second.
            slot = program * 2 + (position != begin).to(gl.int32)
            leave_part(acc, peak, weight, partial, slot, LAYOUT, HEADS_PER_KV)
            if all_left(partial, place, part, NUM_KV_HEADS):
                acc, peak, weight = all_parts(partial, place, part, LAYOUT, HEADS_PER_KV, HEAD_DIM, HEADS)
                finish(acc, peak, weight, output, prefix, plan, place, LAYOUT, HEADS_PER_KV, NUM_KV_HEADS, HAS_SHARED)
        position = position + count
        request, head, line_begin, units = next_request, next_head, next_line_begin, next_units
        first_unit, first, length = next_first_unit, next_first, next_length


@gluon.jit(
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
def decode_hopper_kernel(
    q,
    kv,
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
    rows_per_block,
    score_scale,
    softcap_log2,
    NUM_KV_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    HEADS: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    TILE: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
    HAS_SHARED: gl.constexpr,
):
    UNITS: gl.constexpr = TILE // UNIT
    PANELS: gl.constexpr = HEAD_DIM // PANEL
    # The ring as it is filled, 16 tokens and 64 dimensions at once, and as it is multiplied. Both are the same bytes:
    # a swizzled tile consists of such panels one after another.
    chunks = gl.allocate_shared_memory(kv.dtype, [STAGES * 2 * PANELS * UNITS, UNIT, PANEL], kv.layout)
    tiles = chunks._reinterpret(kv.dtype, [STAGES * 2, TILE, HEAD_DIM], kv.layout)
    q_tile = gl.allocate_shared_memory(kv.dtype, [HEADS, HEAD_DIM], kv.layout)
    p_tile = gl.allocate_shared_memory(kv.dtype, [HEADS, TILE], kv.layout)
    full = _barriers(STAGES, 2 * UNITS)
    empty = _barriers(STAGES, 1)
    fence_async_shared()
    plan = (unit_start, first_request, units_per_program, seq_lens, shared_lens, num_requests, window)
    ring = (kv, chunks, full, empty)
    block_table = (tables, table_stride, rows_per_block)
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    (q, q_stride_row, q_stride_head),
                    (tiles, full, empty),
                    q_tile,
                    p_tile,
                    plan,
                    (counters, partial_acc, partial_stats),
                    (prefix_acc, prefix_stats, num_prefix_splits),
                    (score_scale, softcap_log2),
                    (out, out_stride_row, out_stride_head),
                    NUM_KV_HEADS,
                    HEADS_PER_KV,
                    UNITS,
                    STAGES,
                    HAS_WINDOW,
                    HAS_SOFTCAP,
                    HAS_SHARED,
                ),
            ),
            (
                stream,
                (ring, block_table, plan, 0, NUM_KV_HEADS, BLOCK_SIZE, UNITS, PANELS, STAGES, HAS_WINDOW, HAS_SHARED),
            ),
            (
                stream,
                (ring, block_table, plan, 1, NUM_KV_HEADS, BLOCK_SIZE, UNITS, PANELS, STAGES, HAS_WINDOW, HAS_SHARED),
            ),
        ],
        [1, 1],
        [PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )


def fits_hopper(q: torch.Tensor, kv_cache: torch.Tensor) -> bool:
    """Whether the kernel takes these queries [R, Hq, D] and this cache [num_blocks, 2, Hk, block_size, D]."""
    _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    return (
        q.dtype in (torch.bfloat16, torch.float16)
        and kv_cache.dtype == q.dtype
        and head_dim in HEAD_DIMS
        and block_size % HOPPER_UNIT == 0
        and q.shape[1] // num_kv_heads <= MOST_HEADS_PER_KV
        and kv_cache.stride(0) % head_dim == 0
        and kv_cache.data_ptr() % 16 == 0
    )


def launch_hopper(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    block_tables: torch.Tensor,
    seq_lens: torch.Tensor,
    shared_lens: torch.Tensor | None,
    out: torch.Tensor,
    plan: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    partial: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    prefix: tuple[torch.Tensor, torch.Tensor] | None,
    factors: tuple[float, float],
    *,
    num_programs: int,
    ring: HopperRing,
    sliding_window: int | None,
    has_softcap: bool,
) -> None:
    """`attention_decode.launch_decode` for what `fits_hopper`, planned in units of HOPPER_UNIT tokens.

    `plan` is unit_start, first_request, units_per_program; `partial` is counters, partial_acc, partial_stats.
    """
    num_requests, num_q_heads, head_dim = q.shape
    num_blocks, _, num_kv_heads, block_size, _ = kv_cache.shape
    rows_per_block = kv_cache.stride(0) // head_dim
    rows = (num_blocks - 1) * rows_per_block + 2 * num_kv_heads * block_size
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    prefix_acc, prefix_stats = prefix or partial[1:]
    heads_per_kv = num_q_heads // num_kv_heads
    decode_hopper_kernel[(num_programs,)](
        q,
        TensorDescriptor(kv_cache, [rows, head_dim], [head_dim, 1], [HOPPER_UNIT, PANEL_DIMS], layout),
        block_tables,
        seq_lens,
        seq_lens if shared_lens is None else shared_lens,
        out,
        *plan,
        *partial,
        prefix_acc,
        prefix_stats,
        num_requests,
        prefix_acc.shape[0] if prefix else 0,
        sliding_window or 0,
        q.stride(0),
        q.stride(1),
        out.stride(0),
        out.stride(1),
        block_tables.stride(0),
        rows_per_block,
        *factors,
        NUM_KV_HEADS=num_kv_heads,
        HEADS_PER_KV=heads_per_kv,
        HEADS=max(8, 1 << (heads_per_kv - 1).bit_length()),
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        TILE=ring.tile,
        STAGES=ring.num_stages,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=has_softcap,
        HAS_SHARED=shared_lens is not None,
        num_warps=WARPS,
        maxnreg=REGISTERS,
    )
