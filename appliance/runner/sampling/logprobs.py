"""Log-probabilities of chosen tokens and of the most likely alternatives."""

from __future__ import annotations

import torch

from appliance.protocol.wire import TokenLogprobs


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, counts: list[int]) -> list[TokenLogprobs]:
    """For each row of `logits` [N, vocab] float32: that of `tokens` [N] and of the `counts[i]` most likely.

    Natural logarithms of the model's own distribution, before temperature, penalties and constraints.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens.unsqueeze(1))
    ranks = (logprobs > own).sum(-1) + 1
    best, best_ids = logprobs.topk(max(counts), -1)
    return [
        TokenLogprobs(token_ids=[token, *ids[:count]], logprobs=[value, *values[:count]], rank=rank)
        for token, value, rank, ids, values, count in zip(
            tokens.tolist(),
            own.squeeze(1).tolist(),
            ranks.tolist(),
            best_ids.tolist(),
            best.tolist(),
            counts,
            strict=True,
        )
    ]
