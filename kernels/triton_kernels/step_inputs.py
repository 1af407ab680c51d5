"""Inputs of a step made on the device from what it remembers of each request, so that a graph can hold a whole step.

Persistent state, one row a request: `last_token`, `num_tokens` (known or sampled), `block_table` [rows, columns] int32.
A row that is negative, or whose `num_tokens` is 0, stands for padding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 128


# one compilation, whatever the number
@triton.jit(do_not_specialize=["count"])
def _decode_inputs_kernel(
    rows,
    last_token,
    num_tokens,
    block_table,
    input_ids,
    positions,
    slot_mapping,
    seq_lens,
    count,
    table_stride,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    row = tl.load(rows + i, mask=inside, other=-1).to(tl.int64)
    length = tl.load(num_tokens + row, mask=row >= 0, other=0).to(tl.int64)
    real = length > 0
    position = tl.where(real, length - 1, 0)
    token = tl.load(last_token + row, mask=real, other=0)
    block = tl.load(block_table + row * table_stride + position // BLOCK_SIZE, mask=real, other=0).to(tl.int64)
    slot = tl.where(real, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
    tl.store(input_ids + i, token.to(input_ids.dtype.element_ty), mask=inside)
    tl.store(positions + i, position.to(positions.dtype.element_ty), mask=inside)
    tl.store(slot_mapping + i, slot.to(slot_mapping.dtype.element_ty), mask=inside)
    tl.store(seq_lens + i, length.to(seq_lens.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _append_kernel(rows, sampled, last_token, num_tokens, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + i, mask=i < count, other=-1).to(tl.int64)
    length = tl.load(num_tokens + row, mask=row >= 0, other=0)
    real = length > 0
    token = tl.load(sampled + i, mask=real, other=0)
    tl.store(last_token + row, token.to(last_token.dtype.element_ty), mask=real)
    tl.store(num_tokens + row, length + 1, mask=real)


def decode_inputs(
    rows: torch.Tensor,
    last_token: torch.Tensor,
    num_tokens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    slot_mapping: torch.Tensor,
    seq_lens: torch.Tensor,
) -> None:
    """One token a request: the newest, which is not computed yet. Meaning as `reference.decode_inputs`.

    rows [B] integers, distinct but for padding. Writes input_ids, positions, slot_mapping, seq_lens, each [B] of any
    integer dtype; padding gets token 0, position 0, slot -1, length 0.
    """
    count = rows.shape[0]
    if count:
        _decode_inputs_kernel[(triton.cdiv(count, _BLOCK),)](
            rows,
            last_token,
            num_tokens,
            block_table,
            input_ids,
            positions,
            slot_mapping,
            seq_lens,
            count,
            block_table.stride(0),
            BLOCK_SIZE=block_size,
            BLOCK=_BLOCK,
            num_warps=4,
        )


def append_tokens(
    rows: torch.Tensor, sampled: torch.Tensor, last_token: torch.Tensor, num_tokens: torch.Tensor
) -> None:
    """Remember the `sampled` [B] token of each of `rows` [B]. Meaning as `reference.append_tokens`."""
    count = rows.shape[0]
    if count:
        _append_kernel[(triton.cdiv(count, _BLOCK),)](
            rows, sampled, last_token, num_tokens, count, BLOCK=_BLOCK, num_warps=4
        )


# What a record of `write_rows` holds, int32 each; floats by their bits, the seed in two halves, lower first.
RECORD = ("row", "num_tokens", "last_token", "temperature", "top_k", "top_p", "min_p", "seed_low", "seed_high")


@triton.jit(do_not_specialize=["count"])
def _write_rows_kernel(
    records,
    last_token,
    num_tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    count,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    record = records + i * WIDTH
    row = tl.load(record, mask=inside, other=0).to(tl.int64)
    tl.store(num_tokens + row, tl.load(record + 1, mask=inside, other=0), mask=inside)
    tl.store(last_token + row, tl.load(record + 2, mask=inside, other=0), mask=inside)
    tl.store(temperature + row, tl.load(record + 3, mask=inside, other=0).to(tl.float32, bitcast=True), mask=inside)
    tl.store(top_k + row, tl.load(record + 4, mask=inside, other=0), mask=inside)
    tl.store(top_p + row, tl.load(record + 5, mask=inside, other=0).to(tl.float32, bitcast=True), mask=inside)
    tl.store(min_p + row, tl.load(record + 6, mask=inside, other=0).to(tl.float32, bitcast=True), mask=inside)
    low = tl.load(record + 7, mask=inside, other=0).to(tl.int64) & 0xFFFFFFFF
    high = tl.load(record + 8, mask=inside, other=0).to(tl.int64) << 32
    tl.store(seed + row, low | high, mask=inside)


@triton.jit(do_not_specialize=["count"])
def _write_blocks_kernel(places, blocks, block_table, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + i, mask=i < count, other=0)
    tl.store(block_table + place, tl.load(blocks + i, mask=i < count, other=0), mask=i < count)


@triton.jit
def _gather_block_tables_kernel(
    rows,
    seq_lens,
    block_table,
    out,
    table_stride,
    out_stride,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    used = tl.where(row >= 0, (tl.load(seq_lens + i) + BLOCK_SIZE - 1) // BLOCK_SIZE, 0)
    for start in range(0, used, BLOCK):
        column = start + tl.arange(0, BLOCK)
        block = tl.load(block_table + row * table_stride + column, mask=column < used, other=0)
        tl.store(out + i * out_stride + column, block, mask=column < used)


def write_rows(
    records: torch.Tensor,
    last_token: torch.Tensor,
    num_tokens: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seed: torch.Tensor,
) -> None:
    """Requests take rows: what is known of each, from one packed array.

    records [N, len(RECORD)] int32, contiguous, rows distinct; the state is [rows], int32, float32 for temperature,
    top_p and min_p, int64 for seed.
    """
    count = records.shape[0]
    if count:
        _write_rows_kernel[(triton.cdiv(count, _BLOCK),)](
            records,
            last_token,
            num_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            count,
            WIDTH=len(RECORD),
            BLOCK=_BLOCK,
            num_warps=4,
        )


def write_blocks(places: torch.Tensor, blocks: torch.Tensor, block_table: torch.Tensor) -> None:
    """Entries of `block_table` [rows, columns] int32, contiguous, change: places [N] count from its beginning."""
    count = places.shape[0]
    if count:
        _write_blocks_kernel[(triton.cdiv(count, _BLOCK),)](
            places, blocks, block_table, count, BLOCK=_BLOCK, num_warps=4
        )


def gather_block_tables(
    rows: torch.Tensor, seq_lens: torch.Tensor, block_table: torch.Tensor, block_size: int, out: torch.Tensor
) -> None:
    """The blocks of `rows` [R] one below the other: out [R, columns] int32, as far as seq_lens [R] reach.

    Entries behind them are left as they are. Negative rows are padding.
    """
    _gather_block_tables_kernel[(rows.shape[0],)](
        rows,
        seq_lens,
        block_table,
        out,
        block_table.stride(0),
        out.stride(0),
        BLOCK_SIZE=block_size,
        BLOCK=_BLOCK,
        num_warps=1,
    )
