"""Attention of prompts for Hopper's matrix instructions: one warp loads tiles, two warpgroups multiply.

The scheme is FlashAttention-3's (Shah et al. 2024): tiles come through the tensor memory accelerator into a ring in
shared memory; while a warpgroup takes the softmax of one tile, its product of the next tile's keys, the other
warpgroup's products, or both, keep the matrix unit busy. Each program stays for many query tiles, so that one's loads
overlap the end of another's. Written in Gluon, the layer of Triton in which layouts and barriers are explicit.
"""

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from appliance_kernels.triton_kernels.attention_configs import card

WARPGROUP_ROWS = 64  # rows of one matrix instruction; two warpgroups multiply
REGISTERS = 168  # a thread's at launch: 3 warpgroups of 128 threads share 65,536
CONSUMER_REGISTERS = gl.constexpr(240)
PRODUCER_REGISTERS = gl.constexpr(24)


@gluon.jit
def _barriers(NUMBER: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [NUMBER, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUMBER):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
def _num_turns(plan, NUM_Q_HEADS: gl.constexpr):
    """How many pieces of work, which are a tile of the plan and a head each, a program takes."""
    _items, count, _window = plan
    total = gl.load(count) * NUM_Q_HEADS
    programs = gl.num_programs(0)
    last = total // programs
    return last + (_work(last) < total).to(gl.int32)


@gluon.jit
def _work(turn):
    """The piece of work of a program's turn. Pieces come heaviest first, and every other turn deals them in the
    opposite order, so that all programs get nearly the same sum."""
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    return turn * programs + gl.where(turn % 2 == 1, programs - 1 - program, program)


@gluon.jit
def _tile_range(
    plan, turn, NUM_Q_HEADS: gl.constexpr, ROWS: gl.constexpr, TILE: gl.constexpr, HAS_WINDOW: gl.constexpr
):
    """Of a turn's piece of work: first row, its position, row after the request's last, last key tile, how many key
    tiles. Past the last turn these are of another piece."""
    items, count, window = plan
    item = items + gl.minimum(_work(turn) // NUM_Q_HEADS, gl.maximum(gl.load(count) - 1, 0)) * 4
    first_row = gl.load(item)
    position = gl.load(item + 1)
    end_row = gl.load(item + 2)
    last_tile = (gl.minimum(position + ROWS, end_row - first_row + position) - 1) // TILE
    num_tiles = last_tile + 1
    if HAS_WINDOW:
        num_tiles -= gl.maximum(position - window + 1, 0) // TILE
    return first_row, position, end_row, last_tile, num_tiles


@gluon.jit
def _produce(
    descriptors,
    buffers,
    barriers,
    plan,
    NUM_Q_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
):
    """Fill the buffers: the two query tiles of each piece of work, then its key and value tiles from the last on."""
    q, k, v = descriptors
    q_tiles, k_tiles, v_tiles = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _ = barriers
    NUM_CONSUMERS: gl.constexpr = q_tiles.shape[0]
    STAGES: gl.constexpr = k_tiles.shape[0]
    TILE: gl.constexpr = k_tiles.shape[1]
    ROWS: gl.constexpr = NUM_CONSUMERS * q_tiles.shape[1]
    loaded = 0
    for turn in range(_num_turns(plan, NUM_Q_HEADS)):
        head = _work(turn) % NUM_Q_HEADS
        first_row, position, _end_row, last_tile, num_tiles = _tile_range(
            plan, turn, NUM_Q_HEADS, ROWS, TILE, HAS_WINDOW
        )
        for i in gl.static_range(NUM_CONSUMERS):
            mbarrier.wait(q_empty.index(i), (turn & 1) ^ 1)
            mbarrier.expect(q_full.index(i), q.block_type.nbytes)
            tma.async_copy_global_to_shared(
                q, [first_row + i * q_tiles.shape[1], head * HEAD_DIM], q_full.index(i), q_tiles.index(i)
            )
        column = head // HEADS_PER_KV * HEAD_DIM
        row = first_row - position + last_tile * TILE
        for _tile in range(num_tiles):
            stage = loaded % STAGES
            phase = (loaded // STAGES & 1) ^ 1
            mbarrier.wait(k_empty.index(stage), phase)
            mbarrier.expect(k_full.index(stage), k.block_type.nbytes)
            tma.async_copy_global_to_shared(k, [row, column], k_full.index(stage), k_tiles.index(stage))
            mbarrier.wait(v_empty.index(stage), phase)
            mbarrier.expect(v_full.index(stage), v.block_type.nbytes)
            tma.async_copy_global_to_shared(v, [row, column], v_full.index(stage), v_tiles.index(stage))
            row -= TILE
            loaded += 1


@gluon.jit
def _clear_rows(tile, first, LAYOUT: gl.constexpr):
    """Zero the rows of a tile from `first` on. Both warpgroups do it, with the same result."""
    CHUNK: gl.constexpr = 16
    END: gl.constexpr = tile.shape[0]
    row = gl.arange(0, CHUNK, gl.SliceLayout(1, LAYOUT))
    for start in gl.static_range(0, END, CHUNK):
        if start + CHUNK > first:
            chunk = tile.slice(start, CHUNK)
            value = chunk.load(LAYOUT)
            chunk.store(gl.where((start + row < first)[:, None], value, gl.zeros_like(value)))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _scaled(
    scores,
    row_position,
    first_key,
    window,
    score_scale,
    softcap_log2,
    MASKED: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Scores with the softcap, and -inf where a row doesn't see a key; still to be multiplied by `_factor`."""
    if HAS_SOFTCAP:
        # tanh x = 1 - 2 / (1 + e²ˣ): right at both ends, where the exponential is 0 or infinite
        scores = softcap_log2 * (1.0 - 2.0 / (1.0 + gl.exp2(scores * (score_scale * (2.0 * 1.4426950408889634)))))
    if MASKED:
        key = first_key + gl.arange(0, scores.shape[1], gl.SliceLayout(0, LAYOUT))
        seen = key[None, :] <= row_position[:, None]
        if HAS_WINDOW:
            seen = seen & (key[None, :] > (row_position - window)[:, None])
        scores = gl.where(seen, scores, float("-inf"))
    return scores


@gluon.jit
def _consume(
    buffers,
    barriers,
    plan,
    scales,
    output,
    INDEX: gl.constexpr,
    NUM_Q_HEADS: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
):
    """One warpgroup: rows INDEX · 64 … of each piece of work, key tiles from the last, which holds the diagonal, on."""
    q_tiles, k_tiles, v_tiles = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, turns = barriers
    _items, _count, window = plan
    score_scale, softcap_log2 = scales
    out, out_stride_row, out_stride_head = output
    STAGES: gl.constexpr = k_tiles.shape[0]
    TILE: gl.constexpr = k_tiles.shape[1]
    HEAD_DIM: gl.constexpr = k_tiles.shape[2]
    HALF: gl.constexpr = q_tiles.shape[1]
    ROWS: gl.constexpr = q_tiles.shape[0] * HALF
    DTYPE: gl.constexpr = q_tiles.dtype
    MASK_ALL: gl.constexpr = HAS_WINDOW or TILE < ROWS
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TILE, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    S_ROW: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROW: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    MEMORY: gl.constexpr = gl.BlockedLayout([1, 8], [256 // HEAD_DIM, HEAD_DIM // 8], [4, 1], [1, 0])
    q = q_tiles.index(INDEX)
    factor = score_scale
    if HAS_SOFTCAP:
        factor = 1.0
    used = 0
    taken = 0
    first_row, position, end_row, last_tile, num_tiles = _tile_range(plan, 0, NUM_Q_HEADS, ROWS, TILE, HAS_WINDOW)
    for turn in range(_num_turns(plan, NUM_Q_HEADS)):
        row_position = position + INDEX * HALF + gl.arange(0, HALF, S_ROW)
        first_key = last_tile * TILE
        length = end_row - first_row + position

        mbarrier.wait(q_full.index(INDEX), turn & 1)
        stage = used % STAGES
        mbarrier.wait(k_full.index(stage), used // STAGES & 1)
        scores = warpgroup_mma(
            q, k_tiles.index(stage).permute((1, 0)), gl.zeros([HALF, TILE], gl.float32, S_LAYOUT), use_acc=False
        )
        mbarrier.arrive(k_empty.index(stage))
        scores = _scaled(
            scores, row_position, first_key, window, score_scale, softcap_log2, True, HAS_WINDOW, HAS_SOFTCAP, S_LAYOUT
        )
        # The scale is positive, so it can wait until after the maximum: then it is part of a fused multiply-add.
        peak = gl.max(scores, 1) * factor
        p = gl.exp2(scores * factor - peak[:, None])
        weight = gl.sum(p, 1)
        p = gl.convert_layout(p.to(DTYPE), P_LAYOUT)
        acc = gl.zeros([HALF, HEAD_DIM], gl.float32, O_LAYOUT)
        if first_key + TILE > length:
            # Beyond the request lie other tokens' values, and not-a-number times a probability of 0 isn't 0.
            mbarrier.wait(v_full.index(stage), used // STAGES & 1)
            _clear_rows(v_tiles.index(stage), length - first_key, MEMORY)

        mbarrier.wait(k_full.index((used + 1) % STAGES), (used + 1) // STAGES & 1, pred=num_tiles > 1)
        for tile in range(1, num_tiles):
            first_key -= TILE
            v_stage = used % STAGES
            v_phase = used // STAGES & 1
            used += 1
            stage = used % STAGES
            mbarrier.wait(turns.index(INDEX), (taken & 1) ^ (1 - INDEX))
            taken += 1
            coming = warpgroup_mma(
                q,
                k_tiles.index(stage).permute((1, 0)),
                gl.zeros([HALF, TILE], gl.float32, S_LAYOUT),
                use_acc=False,
                is_async=True,
            )
            mbarrier.wait(v_full.index(v_stage), v_phase)
            summing = warpgroup_mma(p, v_tiles.index(v_stage), acc, is_async=True)
            mbarrier.arrive(turns.index(1 - INDEX))
            scores = warpgroup_mma_wait(1, deps=[coming])
            mbarrier.arrive(k_empty.index(stage))
            scores = _scaled(
                scores,
                row_position,
                first_key,
                window,
                score_scale,
                softcap_log2,
                MASK_ALL,
                HAS_WINDOW,
                HAS_SOFTCAP,
                S_LAYOUT,
            )
            new_peak = gl.maximum(peak, gl.max(scores, 1) * factor)
            next_p = gl.exp2(scores * factor - new_peak[:, None])
            shrink = gl.exp2(peak - new_peak)
            weight = weight * shrink + gl.sum(next_p, 1)
            peak = new_peak
            # Waiting here for the next keys, not at the loop's head, also keeps ptxas from moving the next wait to
            # before the softmax, which would end their overlap.
            following = used + 1
            mbarrier.wait(k_full.index(following % STAGES), following // STAGES & 1, pred=tile + 1 < num_tiles)
            acc = warpgroup_mma_wait(0, deps=[summing])
            mbarrier.arrive(v_empty.index(v_stage))
            acc = acc * gl.convert_layout(shrink, O_ROW)[:, None]
            p = gl.convert_layout(next_p.to(DTYPE), P_LAYOUT)

        mbarrier.arrive(q_empty.index(INDEX))
        stage = used % STAGES
        mbarrier.wait(v_full.index(stage), used // STAGES & 1)
        acc = warpgroup_mma(p, v_tiles.index(stage), acc)
        mbarrier.arrive(v_empty.index(stage))
        used += 1

        result = (acc / gl.convert_layout(weight, O_ROW)[:, None]).to(out.dtype.element_ty)
        result = gl.convert_layout(result, MEMORY)
        row = first_row + INDEX * HALF + gl.arange(0, HALF, gl.SliceLayout(1, MEMORY))
        dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, MEMORY))
        target = out + (row.to(gl.int64) * out_stride_row + _work(turn) % NUM_Q_HEADS * out_stride_head)[:, None]
        in_request = row < end_row
        # read before the store, so that the next piece of work begins without waiting for them
        first_row, position, end_row, last_tile, num_tiles = _tile_range(
            plan, turn + 1, NUM_Q_HEADS, ROWS, TILE, HAS_WINDOW
        )
        gl.store(target + dim[None, :], result, mask=in_request[:, None])


@gluon.jit(
    do_not_specialize=["window"],
    do_not_specialize_on_alignment=["items", "count"],
)
def fresh_hopper_kernel(
    q,
    k,
    v,
    items,
    count,
    out,
    out_stride_row,
    out_stride_head,
    window,
    score_scale,
    softcap_log2,
    NUM_Q_HEADS: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    ROWS: gl.constexpr,
    TILE: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SOFTCAP: gl.constexpr,
):
    buffers = (
        gl.allocate_shared_memory(q.dtype, [2, ROWS // 2, HEAD_DIM], q.layout),
        gl.allocate_shared_memory(k.dtype, [STAGES, TILE, HEAD_DIM], k.layout),
        gl.allocate_shared_memory(v.dtype, [STAGES, TILE, HEAD_DIM], v.layout),
    )
    q_full = _barriers(2, 1)
    q_empty = _barriers(2, 1)
    k_full = _barriers(STAGES, 1)
    k_empty = _barriers(STAGES, 2)
    v_full = _barriers(STAGES, 1)
    v_empty = _barriers(STAGES, 2)
    turns = _barriers(2, 1)
    fence_async_shared()
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty, turns)
    plan = (items, count, window)
    scales = (score_scale, softcap_log2)
    output = (out, out_stride_row, out_stride_head)
    gl.warp_specialize(
        [
            (_consume, (buffers, barriers, plan, scales, output, 0, NUM_Q_HEADS, HAS_WINDOW, HAS_SOFTCAP)),
            (_consume, (buffers, barriers, plan, scales, output, 1, NUM_Q_HEADS, HAS_WINDOW, HAS_SOFTCAP)),
            (_produce, ((q, k, v), buffers, barriers, plan, NUM_Q_HEADS, HEADS_PER_KV, HEAD_DIM, HAS_WINDOW)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


def launch_fresh_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    items: torch.Tensor,
    count: torch.Tensor,
    out: torch.Tensor,
    factors: tuple[float, float],
    *,
    sliding_window: int | None,
    has_softcap: bool,
    tile: int,
    num_stages: int,
) -> None:
    """`attention_fresh.fresh_attention` with its plan, for 16-bit q [T, Hq, D], k, v [T, Hk, D] whose rows begin at
    multiples of 16 bytes; D 64 or 128. `factors` as `attention_common.score_factors` gives them."""
    num_q_heads, head_dim = q.shape[1:]
    rows = 2 * WARPGROUP_ROWS
    programs = min(card(q.device).multiprocessors, items.shape[0] * num_q_heads)
    fresh_hopper_kernel[(programs,)](
        _descriptor(q, WARPGROUP_ROWS),
        _descriptor(k, tile),
        _descriptor(v, tile),
        items,
        count,
        out,
        out.stride(0),
        out.stride(1),
        sliding_window or 0,
        *factors,
        NUM_Q_HEADS=num_q_heads,
        HEADS_PER_KV=num_q_heads // k.shape[1],
        HEAD_DIM=head_dim,
        ROWS=rows,
        TILE=tile,
        STAGES=num_stages,
        HAS_WINDOW=sliding_window is not None,
        HAS_SOFTCAP=has_softcap,
        num_warps=4,
        maxnreg=REGISTERS,
    )


def _descriptor(heads: torch.Tensor, rows: int) -> TensorDescriptor:
    """A tensor map of [T, heads · D] that is read `rows` by one head at a time."""
    num_tokens, num_heads, head_dim = heads.shape
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    return TensorDescriptor(heads, [num_tokens, num_heads * head_dim], [heads.stride(0), 1], [rows, head_dim], layout)
