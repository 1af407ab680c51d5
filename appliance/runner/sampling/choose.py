"""Choosing tokens from edited logits: greedy, or by temperature with min-p, top-k and top-p."""

from __future__ import annotations

import numpy as np
import torch

from appliance.runner.sampling.random import uniform

# Nucleus sampling looks at this many candidates first; nearly always they hold the nucleus, and a full sort is spared.
NUCLEUS_CANDIDATES = 512


def choose(
    logits: torch.Tensor,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    """One token for each row of `logits` [N, vocab] float32 (overwritten). All parameters [N].

    Temperature scales first, then min-p, top-k and top-p (Holtzman et al. 2020) cut, each over what the one before
    left, renormalized. The token is found by inverting the cumulative distribution at `uniform(seed, position)`.
    Returns [N] int64.
    """
    tokens = np.empty(len(temperature), dtype=np.int64)
    greedy = temperature == 0.0
    if greedy.any():
        tokens[greedy] = _rows(logits, greedy).argmax(-1).numpy()
    if greedy.all():
        return tokens
    truncated = ~greedy & ((top_k > 0) | (top_p < 1.0))
    plain = ~greedy & ~truncated
    for which, sample in ((plain, _sample_all), (truncated, _sample_truncated)):
        if which.any():
            scaled = _rows(logits, which) / torch.from_numpy(temperature[which]).unsqueeze(1)
            _cut_min_p(scaled, min_p[which])
            draws = torch.from_numpy(uniform(seeds[which], positions[which])).unsqueeze(1)
            tokens[which] = sample(scaled, draws, top_k[which], top_p[which])
    return tokens


def _rows(logits: torch.Tensor, which: np.ndarray) -> torch.Tensor:
    return logits if which.all() else logits[torch.from_numpy(which)]


def _cut_min_p(logits: torch.Tensor, min_p: np.ndarray) -> None:
    """Remove tokens less likely than min_p times the most likely one."""
    if not min_p.any():
        return
    floor = (
        logits.amax(-1, keepdim=True)
        + torch.from_numpy(np.log(min_p, where=min_p > 0, out=np.full_like(min_p, -np.inf)))[:, None]
    )
    logits.masked_fill_(logits < floor, -torch.inf)


def _invert(probabilities: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Index into each row of `probabilities` [N, M] (need not sum to 1) at cumulative share `draws` [N, 1]."""
    # float64: at 50,000 tokens a float32 running sum loses the tail
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).squeeze(1)
    # A draw next to 1 can round up to the whole sum: then the last token that has any probability.
    last = probabilities.shape[1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def _sample_all(logits: torch.Tensor, draws: torch.Tensor, top_k: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    return _invert(logits.softmax(-1), draws).numpy()


def _sample_truncated(logits: torch.Tensor, draws: torch.Tensor, top_k: np.ndarray, top_p: np.ndarray) -> np.ndarray:
    vocab = logits.shape[-1]
    k = np.where(top_k > 0, np.minimum(top_k, vocab), vocab)
    width = min(vocab, max(int(k.max(initial=0, where=k < vocab)), NUCLEUS_CANDIDATES))
    tokens, complete = _sample_candidates(logits, draws, k, top_p, width)
    if not complete.all():
        rest = ~complete
        pick = torch.from_numpy(rest)
        tokens[rest], _ = _sample_candidates(logits[pick], draws[pick], k[rest], top_p[rest], vocab)
    return tokens


def _sample_candidates(
    logits: torch.Tensor, draws: torch.Tensor, k: np.ndarray, top_p: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample among the `width` most likely tokens; also says for which rows those were enough to decide, [N] bool."""
    vocab = logits.shape[-1]
    values, ids = logits.topk(width, -1)  # descending
    limit = torch.from_numpy(k).unsqueeze(1)
    beyond_k = torch.arange(width) >= limit
    # Top-p counts over what top-k left: the candidates up to k, or the whole vocabulary where there is no k.
    total = torch.where(
        limit < vocab, values.masked_fill(beyond_k, -torch.inf).logsumexp(-1, True), logits.logsumexp(-1, True)
    )
    probabilities = (values - total).exp().masked_fill_(beyond_k, 0.0)
    before = probabilities.cumsum(-1) - probabilities
    nucleus = torch.from_numpy(top_p).unsqueeze(1)
    # A token stays when those before it do not reach p yet; the most likely one always does, however small p is.
    probabilities[:, 1:].masked_fill_(((before >= nucleus) & (nucleus < 1.0))[:, 1:], 0.0)
    reached = before[:, -1:] + (values[:, -1:] - total).exp() >= nucleus
    complete = (limit <= width) | (reached & (nucleus < 1.0))
    index = _invert(probabilities, draws)
    return ids.gather(1, index.unsqueeze(1)).squeeze(1).numpy(), complete.squeeze(1).numpy()
