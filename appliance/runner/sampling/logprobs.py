"""Log-probabilities of chosen tokens and of the most likely alternatives."""

from __future__ import annotations

import torch

from appliance.protocol.wire import TokenLogprobs


def logprob_tensors(
    logits: torch.Tensor, tokens: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each row of `logits` [N, vocab] float32: that of `tokens` [N], its rank, and the `top` most likely.

    Natural logarithms of the model's own distribution, before temperature, penalties and constraints. Returns [N]
    float32, [N] int64 (1 is the most likely), [N, top] float32, descending, and their ids [N, top] int64.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens.long().unsqueeze(1))
    ranks = (logprobs > own).sum(-1) + 1
    best, best_ids = logprobs.topk(top, -1)
    return own.squeeze(1), ranks, best, best_ids


def to_wire(
    counts: list[int],
    tokens: torch.Tensor,
    own: torch.Tensor,
    ranks: torch.Tensor,
    best: torch.Tensor,
    best_ids: torch.Tensor,
) -> list[TokenLogprobs]:
    """`tokens` [N] and what `logprob_tensors` says of them, cut to the `counts[i]` alternatives that are wanted."""
    return [
        TokenLogprobs(token_ids=[token, *ids[:count]], logprobs=[value, *values[:count]], rank=rank)
        for count, token, value, rank, values, ids in zip(
            counts, *(x.tolist() for x in (tokens, own, ranks, best, best_ids)), strict=True
        )
    ]


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """`logprob_tensors` of rows of which each wants its own number of alternatives."""
    return to_wire(counts, tokens, *logprob_tensors(logits, tokens, max(counts)))
