"""Edits of the logits before sampling: what a token may be, and how the text so far weighs on it.

The host lists the edits of a step (`collect_edits`); applying the lists (`apply_edits`) is the same few operations on
every device, none of which waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from appliance.runner.rows import Rows
from appliance.runner.sampling.row_constraints import RowConstraints

_LARGEST = torch.finfo(torch.float32).max


@dataclass(slots=True)
class LogitEdits:
    """Edits of some rows of the logits, in the order in which they apply. `…rows` number rows of the logits."""

    restricted: np.ndarray  # [R] int32, rows that keep only the tokens listed for them in `biased_tokens`
    biased_rows: np.ndarray  # [E] int32; a token is listed at most once for a row
    biased_tokens: np.ndarray  # [E] int32
    biases: np.ndarray  # [E] float32, added
    banned_rows: np.ndarray  # [B] int32
    banned_tokens: np.ndarray  # [B] int32
    penalized_rows: np.ndarray  # [P] int32
    penalties: np.ndarray  # [P * 3] float32: repetition, presence, frequency of each of these rows
    num_seen: np.ndarray  # [P] int32, distinct tokens of each of these rows ...
    seen: np.ndarray  # [S] int32, ... which are these
    times: np.ndarray  # [S] float32, how often each was generated


def edited_rows(rows: np.ndarray, batch: Rows) -> np.ndarray:
    """Indices into `rows` [N] of those whose logits are edited in this step; rows without constraints cost nothing."""
    constrained = np.flatnonzero(batch.constrained[rows]).tolist()
    return np.array(
        [i for i in constrained if batch.constraints[rows[i]].edits(batch.text(int(rows[i])))], dtype=np.int64
    )


def collect_edits(rows: np.ndarray, lines: np.ndarray, batch: Rows) -> LogitEdits:
    """The edits of requests `rows` [N], all of them constrained, whose logits are rows `lines` [N] of a tensor.

    Order: allowed tokens, logit bias, minimum length and bad words, then penalties.
    """
    restricted: list[int] = []
    biased: list[tuple[int, RowConstraints]] = []
    banned: list[tuple[int, int]] = []
    penalized: list[tuple[int, RowConstraints]] = []
    for row, line in zip(rows.tolist(), lines.tolist(), strict=True):
        constraints, tokens = batch.constraints[row], batch.text(row)
        if constraints.restricted:
            restricted.append(line)
        if len(constraints.biases):
            biased.append((line, constraints))
        banned += [(line, token) for token in constraints.bans(tokens)]
        if constraints.penalties is not None:
            constraints.text.update(tokens)
            penalized.append((line, constraints))
    bans = np.array(banned, np.int32).reshape(-1, 2)
    num_biased = [len(constraints.biases) for _, constraints in biased]
    return LogitEdits(
        restricted=np.array(restricted, np.int32),
        biased_rows=np.repeat(np.array([line for line, _ in biased], np.int32), num_biased),
        biased_tokens=_joined([constraints.biased_tokens for _, constraints in biased], np.int32),
        biases=_joined([constraints.biases for _, constraints in biased], np.float32),
        banned_rows=bans[:, 0],
        banned_tokens=bans[:, 1],
        penalized_rows=np.array([line for line, _ in penalized], np.int32),
        penalties=np.array([constraints.penalties for _, constraints in penalized], np.float32).reshape(-1),
        num_seen=np.array([len(constraints.text.ids) for _, constraints in penalized], np.int32),
        seen=_joined([constraints.text.ids for _, constraints in penalized], np.int32),
        times=_joined([constraints.text.times for _, constraints in penalized], np.float32),
    )


def apply_edits(logits: torch.Tensor, edits: LogitEdits) -> None:
    """Edit `logits` [N, vocab] float32, contiguous, in place. What is added or divided stays within float32's range."""
    vocab, flat = logits.shape[1], logits.view(-1)
    restricted, biased_rows, biased_tokens, biases, banned_rows, banned_tokens, *penalties = to_device(
        [getattr(edits, name) for name in LogitEdits.__slots__], logits.device
    )
    biased = biased_rows.long() * vocab + biased_tokens
    kept = (flat[biased] + biases).clamp_(max=_LARGEST)
    logits.index_fill_(0, restricted.long(), -torch.inf)
    flat.index_copy_(0, biased, kept)
    flat.index_fill_(0, banned_rows.long() * vocab + banned_tokens, -torch.inf)
    if len(edits.penalized_rows):
        _penalize(logits, *penalties)


def _penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    penalties: torch.Tensor,
    num_seen: torch.Tensor,
    seen: torch.Tensor,
    times: torch.Tensor,
) -> None:
    """Repetition (Keskar et al. 2019) divides positive and multiplies negative logits of all tokens of the text;
    presence is subtracted once, and frequency as often as it occurs, for generated tokens."""
    of_token = torch.repeat_interleave(
        torch.arange(len(rows), device=logits.device), num_seen, output_size=len(seen)
    )  # with its size known beforehand, nothing waits for the device
    repetition, presence, frequency = penalties.view(-1, 3)[of_token].unbind(1)
    flat, place = logits.view(-1), rows.long()[of_token] * logits.shape[1] + seen
    value = flat[place]
    value = torch.where(value > 0, value / repetition, value * repetition)
    value -= torch.where(times > 0, presence + frequency * times, 0.0)
    flat.index_copy_(0, place, value.clamp_(max=_LARGEST))  # a tiny repetition penalty divides beyond float32


def to_device(arrays: list[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays [any] of int32 or float32 on `device`, in one copy for which the host does not wait."""
    packed = torch.from_numpy(np.concatenate([np.ascontiguousarray(array).view(np.int32) for array in arrays]))
    if device.type == "cuda":
        packed = packed.pin_memory()
    parts = packed.to(device, non_blocking=True).split([len(array) for array in arrays])
    return [
        part.view(torch.float32) if array.dtype == np.float32 else part
        for part, array in zip(parts, arrays, strict=True)
    ]


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype)
