"""Edits of the logits before sampling, in place, on the device.

What the host decides (bias, bans, allowed tokens) comes as a sparse list of (row, token, addend). What depends on the
text so far (repetition, presence and frequency penalties) is counted on the device from its own token ids, so that it
includes tokens that the host has not seen yet. Order: the list first, then the penalties.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

_BLOCK = 256
# Programs that share one row's history; each takes every so-many-th block of it.
_HISTORY_PROGRAMS = 16
# Set in a token's count when the prompt holds it; the bits below count generated occurrences.
_IN_PROMPT = 1 << 30
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """A sparse list, each (row, token) at most once."""

    rows: torch.Tensor  # [E] int32, row of the logits; negative: no edit
    tokens: torch.Tensor  # [E] int32
    addends: torch.Tensor  # [E] float32; -inf bans the token
    restricted: torch.Tensor  # [R] int32, rows of the logits that keep only the tokens listed for them


@dataclass(frozen=True, slots=True)
class PenaltyRows:
    """Penalties and text on the device, one row a request."""

    repetition: torch.Tensor  # [R] float32, 1: none
    presence: torch.Tensor  # [R] float32, 0: none
    frequency: torch.Tensor  # [R] float32, 0: none
    token_ids: torch.Tensor  # [R, max_len] int32
    num_tokens: torch.Tensor  # [R] int32, known or sampled
    num_prompt_tokens: torch.Tensor  # [R] int32


@triton.jit
def _clamped(edited, raw, largest):
    """`edited` within the finite range, so that no edit looks like a broken model; a broken logit stays broken."""
    return tl.where(raw < float("inf"), tl.minimum(edited, largest), raw)


# one compilation, whatever the number
@triton.jit(do_not_specialize=["count"])
def _add_kernel(
    logits, rows, tokens, addends, kept, logits_stride, count, largest, KEEP: tl.constexpr, BLOCK: tl.constexpr
):
    """The edited logit of each entry, in place, or with KEEP beside it in `kept`."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + e, mask=e < count, other=-1).to(tl.int64)
    real = row >= 0
    place = logits + row * logits_stride + tl.load(tokens + e, mask=real, other=0)
    raw = tl.load(place, mask=real, other=0.0).to(tl.float32)
    edited = _clamped(raw + tl.load(addends + e, mask=real, other=0.0), raw, largest)
    if KEEP:
        tl.store(kept + e, edited, mask=real)
    else:
        tl.store(place, edited.to(logits.dtype.element_ty), mask=real)


@triton.jit
def _fill_kernel(logits, restricted, logits_stride, vocab, BLOCK: tl.constexpr):
    row = tl.load(restricted + tl.program_id(1)).to(tl.int64)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    lowest = tl.full([BLOCK], float("-inf"), tl.float32)
    mask = token < tl.where(row >= 0, vocab, 0)
    tl.store(logits + row * logits_stride + token, lowest.to(logits.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _put_kernel(logits, rows, tokens, kept, logits_stride, count, BLOCK: tl.constexpr):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + e, mask=e < count, other=-1).to(tl.int64)
    real = row >= 0
    place = logits + row * logits_stride + tl.load(tokens + e, mask=real, other=0)
    tl.store(place, tl.load(kept + e, mask=real, other=0.0).to(logits.dtype.element_ty), mask=real)


@triton.jit
def _count_kernel(
    rows,
    token_ids,
    num_tokens,
    num_prompt_tokens,
    counts,
    ids_stride,
    vocab,
    IN_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count each token of a row's text in the row's part of `counts`."""
    p = tl.program_id(1)
    row = tl.load(rows + p).to(tl.int64)
    length = tl.load(num_tokens + row, mask=row >= 0, other=0)
    prompt = tl.load(num_prompt_tokens + row, mask=row >= 0, other=0)
    for start in range(tl.program_id(0) * BLOCK, length, tl.num_programs(0) * BLOCK):
        position = start + tl.arange(0, BLOCK)
        token = tl.load(token_ids + row * ids_stride + position, mask=position < length, other=0)
        place = counts + p.to(tl.int64) * vocab + token
        tl.atomic_add(place, tl.full([BLOCK], 1, tl.int32), mask=(position < length) & (position >= prompt))
        tl.atomic_or(place, tl.full([BLOCK], IN_PROMPT, tl.int32), mask=position < tl.minimum(prompt, length))


@triton.jit
def _penalize_kernel(
    logits,
    batch,
    rows,
    repetition,
    presence,
    frequency,
    token_ids,
    num_tokens,
    counts,
    logits_stride,
    ids_stride,
    vocab,
    largest,
    IN_PROMPT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Whoever takes a token's count away edits its logit: once, however often the text holds it. Counts end at zero."""
    p = tl.program_id(1)
    row = tl.load(rows + p).to(tl.int64)
    held = row >= 0
    length = tl.load(num_tokens + row, mask=held, other=0)
    factor = tl.load(repetition + row, mask=held, other=1.0)
    once = tl.load(presence + row, mask=held, other=0.0)
    each = tl.load(frequency + row, mask=held, other=0.0)
    line = logits + tl.load(batch + p).to(tl.int64) * logits_stride
    for start in range(tl.program_id(0) * BLOCK, length, tl.num_programs(0) * BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < length
        token = tl.load(token_ids + row * ids_stride + position, mask=inside, other=0)
        seen = tl.atomic_xchg(counts + p.to(tl.int64) * vocab + token, tl.full([BLOCK], 0, tl.int32), mask=inside)
        mine = inside & (seen != 0)
        raw = tl.load(line + token, mask=mine, other=0.0).to(tl.float32)
        edited = tl.where(raw > 0.0, raw / factor, raw * factor)
        times = seen & (IN_PROMPT - 1)
        edited = tl.where(times > 0, edited - (once + each * times.to(tl.float32)), edited)
        tl.store(line + token, _clamped(edited, raw, largest).to(logits.dtype.element_ty), mask=mine)


def edit_logits(logits: torch.Tensor, edits: LogitEdits) -> None:
    """Apply `edits` to `logits` [N, V] in place; meaning as `reference.edit_logits`.

    logits are bfloat16, float16 or float32, rows contiguous; in 16 bits small addends are lost to rounding.
    """
    count = edits.rows.shape[0]
    num_restricted = edits.restricted.shape[0]
    grid = (triton.cdiv(count, _BLOCK),)
    kept = torch.empty(count if num_restricted else 1, dtype=torch.float32, device=logits.device)
    if count:
        _add_kernel[grid](
            logits,
            edits.rows,
            edits.tokens,
            edits.addends,
            kept,
            logits.stride(0),
            count,
            _LARGEST[logits.dtype],
            KEEP=num_restricted > 0,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    if num_restricted:
        vocab = logits.shape[1]
        _fill_kernel[(triton.cdiv(vocab, 4096), num_restricted)](
            logits, edits.restricted, logits.stride(0), vocab, BLOCK=4096, num_warps=4
        )
        if count:
            _put_kernel[grid](
                logits, edits.rows, edits.tokens, kept, logits.stride(0), count, BLOCK=_BLOCK, num_warps=4
            )


def apply_penalties(
    logits: torch.Tensor, batch: torch.Tensor, rows: torch.Tensor, params: PenaltyRows, counts: torch.Tensor
) -> None:
    """Penalize tokens that the text holds; meaning as `reference.apply_penalties`. In place.

    logits [N, V] as in `edit_logits`; `batch` [P] are the rows of the logits that have penalties and `rows` [P] their
    rows in `params` (negative: padding), integers. `counts` [S, V] int32 is scratch that is all zeros before and after:
    S rows are done at a time, so a few suffice.
    """
    vocab = logits.shape[1]
    if counts.shape[1] != vocab or not counts.is_contiguous():
        raise ValueError(f"counts must be contiguous, [any, {vocab}]; its shape is {tuple(counts.shape)}")
    at_once = counts.shape[0]
    for start in range(0, rows.shape[0], at_once):
        some_batch, some_rows = batch[start : start + at_once], rows[start : start + at_once]
        grid = (_HISTORY_PROGRAMS, some_rows.shape[0])
        _count_kernel[grid](
            some_rows,
            params.token_ids,
            params.num_tokens,
            params.num_prompt_tokens,
            counts,
            params.token_ids.stride(0),
            vocab,
            IN_PROMPT=_IN_PROMPT,
            BLOCK=_BLOCK,
            num_warps=4,
        )
        _penalize_kernel[grid](
            logits,
            some_batch,
            some_rows,
            params.repetition,
            params.presence,
            params.frequency,
            params.token_ids,
            params.num_tokens,
            counts,
            logits.stride(0),
            params.token_ids.stride(0),
            vocab,
            _LARGEST[logits.dtype],
            IN_PROMPT=_IN_PROMPT,
            BLOCK=_BLOCK,
            num_warps=4,
        )
