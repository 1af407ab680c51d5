"""From logits to tokens, for all requests of a step that have one to choose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from appliance.protocol.wire import TokenLogprobs
from appliance.runner.rows import Rows
from appliance.runner.sampling.choose import choose
from appliance.runner.sampling.constraints import apply_edits, collect_edits, edited_rows
from appliance.runner.sampling.logprobs import token_logprobs

# What the status of a row may be, on every device.
OK, BAD_LOGITS, NO_TOKEN_LEFT = 0, 1, 2
_MESSAGES = {
    BAD_LOGITS: "the model produced NaN or infinite logits for this request",
    NO_TOKEN_LEFT: "no token is left to choose: allowed_token_ids, bad_words and min_tokens together exclude them all",
}


@dataclass(slots=True)
class Sampled:
    """Parallel to the rows that were given."""

    tokens: np.ndarray  # [N] int64
    logprobs: dict[int, TokenLogprobs]  # by index
    errors: dict[int, int]  # by index, its status; the token there means nothing


def error_message(status: int) -> str:
    """What the client of a request is told whose status is not OK."""
    return _MESSAGES[status]


def sample(logits: torch.Tensor, rows: np.ndarray, batch: Rows) -> Sampled:
    """Choose the next token of requests `rows` [N] from `logits` [N, vocab] float32, which is overwritten."""
    # The maximum is NaN or infinite where any logit is NaN or +infinite: one pass tells which requests are broken.
    top = logits.amax(-1)
    errors = {int(i): BAD_LOGITS for i in torch.nonzero(~top.isfinite()).flatten()}
    wanted = np.flatnonzero(batch.num_logprobs[rows] >= 0)
    raw = logits[torch.from_numpy(wanted)] if len(wanted) else None
    edited = edited_rows(rows, batch)
    if len(edited):
        apply_edits(logits, collect_edits(rows[edited], edited, batch))
        empty = edited[(logits[torch.from_numpy(edited)].amax(-1) == -torch.inf).numpy()]
        errors = {int(i): NO_TOKEN_LEFT for i in empty} | errors
    tokens = choose(
        logits,
        batch.temperature[rows],
        batch.top_k[rows],
        batch.top_p[rows],
        batch.min_p[rows],
        batch.seed[rows],
        batch.num_tokens[rows],
    )
    logprobs: dict[int, TokenLogprobs] = {}
    if raw is not None:
        counts = batch.num_logprobs[rows[wanted]].tolist()
        found = token_logprobs(raw, torch.from_numpy(tokens[wanted]), counts)
        logprobs = dict(zip(wanted.tolist(), found, strict=True))
    return Sampled(tokens, logprobs, errors)
