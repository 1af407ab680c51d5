"""Which lines a program of Hopper's decode kernel works on, and the copying of their keys and values, block by block.

A line is one request and key/value head; a program's part of the batch begins and ends anywhere within lines.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from appliance_kernels.triton_kernels.attention_configs import HOPPER_UNIT

PANEL_DIMS = 64  # dimensions of one copy: as wide as shared memory is swizzled, 128 bytes
PANEL = gl.constexpr(PANEL_DIMS)
UNIT = gl.constexpr(HOPPER_UNIT)


@gluon.jit
def read_line(plan, line, NUM_KV_HEADS: gl.constexpr, HAS_WINDOW: gl.constexpr, HAS_SHARED: gl.constexpr):
    """Of a line: request, head, its first unit among those of the batch, how many it has, the first of them in the
    request, the first token attended to, and the request's length. Past the last line these are of the last."""
    unit_start, _first_request, _units_per_program, seq_lens, shared_lens, num_requests, window = plan
    line = gl.minimum(line, num_requests * NUM_KV_HEADS - 1)
    request = line // NUM_KV_HEADS
    head = line % NUM_KV_HEADS
    before = gl.load(unit_start + request)
    units = gl.load(unit_start + request + 1) - before
    length = gl.load(seq_lens + request)
    first = length * 0
    if HAS_WINDOW:
        first = gl.maximum(length - window, 0)
    if HAS_SHARED:
        first = gl.maximum(first, gl.load(shared_lens + request))
    return request, head, before * NUM_KV_HEADS + head * units, units, first // UNIT, first, length


@gluon.jit
def read_part(plan, NUM_KV_HEADS: gl.constexpr):
    """Of this program: its first unit, the one after its last, how many a program has, and the line it begins in."""
    unit_start, first_request, units_per_program, _seq_lens, _shared_lens, num_requests, _window = plan
    program = gl.program_id(0)
    part = gl.load(units_per_program)
    request = gl.load(first_request + program)
    begin = program * part
    end = gl.minimum(begin + part, gl.load(unit_start + num_requests) * NUM_KV_HEADS)
    before = gl.load(unit_start + request)
    units = gl.load(unit_start + request + 1) - before
    return begin, end, part, request * NUM_KV_HEADS + (begin - before * NUM_KV_HEADS) // units


@gluon.jit
def _block_ids(table, unit, end_unit, UNITS: gl.constexpr, UNITS_PER_BLOCK: gl.constexpr):
    ids = ()
    for i in gl.static_range(UNITS):
        ids = ids + (gl.load(table + (unit + i) // UNITS_PER_BLOCK, mask=unit + i < end_unit, other=0),)  # noqa: RUF005
    return ids


@gluon.jit
def stream(
    ring,
    block_table,
    plan,
    KIND: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    UNITS: gl.constexpr,
    PANELS: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_WINDOW: gl.constexpr,
    HAS_SHARED: gl.constexpr,
):
    """Fill the ring with the keys (KIND 0) or values (1) of this program's part, line after line."""
    kv, chunks, full, empty = ring
    tables, table_stride, rows_per_block = block_table
    UNITS_PER_BLOCK: gl.constexpr = BLOCK_SIZE // UNIT
    BYTES: gl.constexpr = PANELS * kv.block_type.nbytes
    position, end, _part_units, line = read_part(plan, NUM_KV_HEADS)
    request, head, line_begin, units, first_unit, _first, length = read_line(
        plan, line, NUM_KV_HEADS, HAS_WINDOW, HAS_SHARED
    )
    loaded = 0
    while position < end:
        count = gl.minimum(line_begin + units, end) - position
        unit = first_unit + position - line_begin
        end_unit = gl.minimum(unit + count, (length + UNIT - 1) // UNIT)
        table = tables + request.to(gl.int64) * table_stride
        first_row = (KIND * NUM_KV_HEADS + head) * BLOCK_SIZE
        position += count
        num_tiles = (count + UNITS - 1) // UNITS
        # What comes next is read one step ahead, so that no copy waits for its address.
        ids = _block_ids(table, unit, end_unit, UNITS, UNITS_PER_BLOCK)
        line += 1
        request, head, line_begin, units, first_unit, _first, length = read_line(
            plan, line, NUM_KV_HEADS, HAS_WINDOW, HAS_SHARED
        )
        for _tile in range(num_tiles):
            next_ids = _block_ids(table, unit + UNITS, end_unit, UNITS, UNITS_PER_BLOCK)
            stage = loaded % STAGES
            barrier = full.index(stage)
            mbarrier.wait(empty.index(stage), (loaded // STAGES & 1) ^ 1)
            for i in gl.static_range(UNITS):
                there = unit + i < end_unit
                mbarrier.expect(barrier, BYTES, pred=there)
                mbarrier.arrive(barrier, pred=unit + i >= end_unit)
                row = ids[i] * rows_per_block + first_row + (unit + i) % UNITS_PER_BLOCK * UNIT
                for panel in gl.static_range(PANELS):
                    tma.async_copy_global_to_shared(
                        kv,
                        [row, panel * PANEL],
                        barrier,
                        chunks.index(((stage * 2 + KIND) * PANELS + panel) * UNITS + i),
                        pred=there,
                    )
            ids = next_ids
            unit += UNITS
            loaded += 1
