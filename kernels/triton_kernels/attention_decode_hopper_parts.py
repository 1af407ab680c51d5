"""What becomes of a line's attention in Hopper's decode kernel: its output, or a part to be put together with others.

A line is one request and key/value head. Its sums are acc [D, heads], largest score and sum of exponentials [heads].
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

NOTHING_SEEN = gl.constexpr(-1.0e30)  # the running maximum before the first score; finite, so that differences are
MERGED = gl.constexpr(4)  # parts that are read at once when they are put together


@gluon.jit
def _add(acc, peak, weight, other, other_peak, other_weight):
    new_peak = gl.maximum(peak, other_peak)
    shrink = gl.exp2(peak - new_peak)
    other_shrink = gl.exp2(other_peak - new_peak)
    acc = acc * shrink[None, :] + other * other_shrink[None, :]
    return acc, new_peak, weight * shrink + other_weight * other_shrink


@gluon.jit
def finish(
    acc,
    peak,
    weight,
    output,
    prefix,
    plan,
    place,
    LAYOUT: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    HAS_SHARED: gl.constexpr,
):
    """Add what the shared prefix contributes, and write the outputs of one line."""
    out, out_stride_row, out_stride_head = output
    request, head, length, _line_begin, _units = place
    HEAD_DIM: gl.constexpr = acc.shape[0]
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, acc.shape[1], gl.SliceLayout(0, LAYOUT))
    exists = column < HEADS_PER_KV
    q_head = head * HEADS_PER_KV + column
    if HAS_SHARED:
        prefix_acc, prefix_stats, num_splits = prefix
        _unit_start, _first_request, _units_per_program, _seq_lens, shared_lens, num_requests, _window = plan
        shares = (gl.load(shared_lens + request) > 0) & (length > 0)
        for split in range(gl.where(shares, num_splits, 0)):
            source = (split * num_requests + request) * (NUM_KV_HEADS * HEADS_PER_KV) + q_head
            other_peak = gl.load(prefix_stats + source * 2, mask=exists, other=NOTHING_SEEN)
            other_weight = gl.load(prefix_stats + source * 2 + 1, mask=exists, other=0.0)
            # a split that saw nothing of the prefix has left no acc
            there = exists & (other_weight > 0)
            pointers = prefix_acc + (source.to(gl.int64) * HEAD_DIM)[None, :]
            other = gl.load(pointers + dim[:, None], mask=there[None, :], other=0.0)
            acc, peak, weight = _add(acc, peak, weight, other, other_peak, other_weight)
    result = acc / gl.where(weight > 0, weight, 1.0)[None, :]
    target = out + request.to(gl.int64) * out_stride_row
    gl.store(
        target + (q_head * out_stride_head)[None, :] + dim[:, None],
        result.to(out.dtype.element_ty),
        mask=exists[None, :],
    )


@gluon.jit
def leave_part(acc, peak, weight, partial, slot, LAYOUT: gl.constexpr, HEADS_PER_KV: gl.constexpr):
    """Store what this program has of a line that it shares with others."""
    _counters, partial_acc, partial_stats = partial
    HEAD_DIM: gl.constexpr = acc.shape[0]
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, acc.shape[1], gl.SliceLayout(0, LAYOUT))
    exists = column < HEADS_PER_KV
    source = slot * HEADS_PER_KV + column
    gl.store(partial_stats + source * 2, peak, mask=exists)
    gl.store(partial_stats + source * 2 + 1, weight, mask=exists)
    gl.store(partial_acc + (source * HEAD_DIM)[None, :] + dim[:, None], acc, mask=exists[None, :])


@gluon.jit
def all_left(partial, place, part, NUM_KV_HEADS: gl.constexpr):
    """Say that this program has left its part; true for the last of the line's programs to say so."""
    counters, _partial_acc, _partial_stats = partial
    request, head, _length, line_begin, units = place
    gl.thread_barrier()  # all threads have stored before one of them says so
    counter = counters + request * NUM_KV_HEADS + head
    last = (
        gl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == (line_begin + units - 1) // part - line_begin // part
    )
    if last:
        gl.store(counter, 0)  # ready for the next launch
    return last


@gluon.jit
def all_parts(
    partial,
    place,
    part,
    LAYOUT: gl.constexpr,
    HEADS_PER_KV: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    HEADS: gl.constexpr,
):
    """The sums of a line whose parts its programs, each of `part` units, have all left."""
    _counters, partial_acc, partial_stats = partial
    _request, _head, _length, line_begin, units = place
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, HEADS, gl.SliceLayout(0, LAYOUT))
    acc = gl.zeros([HEAD_DIM, HEADS], gl.float32, LAYOUT)
    peak = gl.full([HEADS], NOTHING_SEEN, gl.float32, gl.SliceLayout(0, LAYOUT))
    weight = gl.zeros([HEADS], gl.float32, gl.SliceLayout(0, LAYOUT))
    left = line_begin // part  # the program that the line begins in ...
    right = (line_begin + units - 1) // part  # ... and the one it ends in
    for start in range(left, right + 1, MERGED):
        for i in gl.static_range(MERGED):
            program = start + i
            second = (program == left) & (line_begin != left * part)
            source = (program * 2 + second.to(gl.int32)) * HEADS_PER_KV + column
            there = (column < HEADS_PER_KV) & (program <= right)
            other_peak = gl.load(partial_stats + source * 2, mask=there, other=NOTHING_SEEN, cache_modifier=".cg")
            other_weight = gl.load(partial_stats + source * 2 + 1, mask=there, other=0.0, cache_modifier=".cg")
            pointers = partial_acc + (source * HEAD_DIM)[None, :] + dim[:, None]
            other = gl.load(pointers, mask=there[None, :], other=0.0, cache_modifier=".cg")
            acc, peak, weight = _add(acc, peak, weight, other, other_peak, other_weight)
    return acc, peak, weight
