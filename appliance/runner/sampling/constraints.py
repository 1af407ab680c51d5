"""Edits of the logits before sampling: what a token may be, and how the text so far weighs on it."""

from __future__ import annotations

import numpy as np
import torch

from appliance.runner.rows import Rows

_LARGEST = torch.finfo(torch.float32).max


def apply_constraints(logits: torch.Tensor, rows: np.ndarray, batch: Rows) -> bool:
    """Edit `logits` [N, vocab] float32 in place for requests `rows` [N]; rows without any constraint cost nothing.

    Order: allowed tokens, logit bias, minimum length, bad words, then penalties. Returns whether anything was edited.
    """
    constrained = np.flatnonzero(batch.constrained[rows])
    for i in constrained:
        _constrain(logits[i], int(rows[i]), batch)
        logits[i].clamp_(max=_LARGEST)  # a tiny repetition penalty divides beyond float32
    return len(constrained) > 0


def _constrain(logits: torch.Tensor, row: int, batch: Rows) -> None:
    """`logits` [vocab], a view."""
    params = batch.sampling[row]
    assert params is not None
    count, prompt = int(batch.num_tokens[row]), int(batch.num_prompt_tokens[row])
    tokens = batch.token_ids[row, :count]
    if params.allowed_token_ids is not None:
        allowed = torch.tensor(params.allowed_token_ids)
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    if params.logit_bias:
        logits[torch.tensor(list(params.logit_bias))] += torch.tensor(list(params.logit_bias.values()))
    if count - prompt < params.min_tokens and batch.stop_token_ids[row]:
        logits[torch.tensor(list(batch.stop_token_ids[row]))] = -torch.inf
    for word in params.bad_words_token_ids:
        before = len(word) - 1
        # Only generated tokens count: a prompt that ends with the word's beginning is the client's own choice.
        if count - prompt >= before and tuple(tokens[count - before :]) == word[:-1]:
            logits[word[-1]] = -torch.inf
    if params.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(tokens).astype(np.int64))
        value = logits[seen]
        logits[seen] = torch.where(value > 0, value / params.repetition_penalty, value * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, times = np.unique(tokens[prompt:], return_counts=True)
        penalty = params.presence_penalty + params.frequency_penalty * torch.from_numpy(times.astype(np.float32))
        logits[torch.from_numpy(ids.astype(np.int64))] -= penalty
