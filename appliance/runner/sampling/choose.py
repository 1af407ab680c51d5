"""Choosing tokens from edited logits: greedy, or by temperature with min-p, top-k and top-p."""

from __future__ import annotations

import numpy as np
import torch

from appliance.runner.sampling.random import draw_keys, gumbel_argmax, spread_tokens

# Neighbouring tokens whose maximum bounds where the most likely ones are.
_GROUP = 128


def choose(
    logits: torch.Tensor,
    temperature: np.ndarray,
    top_k: np.ndarray,
    top_p: np.ndarray,
    min_p: np.ndarray,
    seeds: np.ndarray,
    positions: np.ndarray,
) -> np.ndarray:
    """One token for each row of `logits` [N, vocab] float32. All parameters [N].

    Temperature scales first, then min-p, top-k and top-p (Holtzman et al. 2020) cut, each over what the one before
    left, renormalized. Tokens of equal logits stay or go together: top-k keeps all that equal the k-th, top-p all that
    the more likely ones leave short of p. Drawn is the largest of logit / temperature + Gumbel noise, which depends on
    seed, position and token: a logit that is rounded differently seldom changes the token. Returns [N] int64.
    """
    tokens = np.empty(len(temperature), dtype=np.int64)
    greedy = temperature == 0.0
    if greedy.any():
        rows = logits if greedy.all() else logits[torch.from_numpy(greedy)]
        tokens[greedy] = rows.argmax(-1).numpy()
    if not greedy.all():
        spread, keys = spread_tokens(logits.shape[1]), draw_keys(seeds, positions)
        for i in np.flatnonzero(~greedy):
            tokens[i] = _draw(
                logits[i].numpy(), temperature[i], int(top_k[i]), float(top_p[i]), float(min_p[i]), spread, keys[i]
            )
    return tokens


def _draw(
    logits: np.ndarray,
    temperature: np.float32,
    top_k: int,
    top_p: float,
    min_p: float,
    spread: np.ndarray,
    key: np.ndarray,
) -> int:
    """A token of `logits` [vocab] float32; any if they have no finite maximum, for then the request ends."""
    peak = logits.max()
    if not np.isfinite(peak):
        return 0
    kept: np.ndarray | None = None  # ids, [M]; all without cuts
    scaled = (logits - peak) * (np.float32(1.0) / temperature)
    if min_p > 0.0:
        kept = np.flatnonzero(scaled >= np.float32(np.log(min_p)))
    if top_k > 0:
        threshold = _kth_largest(logits, top_k)
        kept = np.flatnonzero(logits >= threshold) if kept is None else kept[logits[kept] >= threshold]
    if kept is not None:
        logits, scaled, spread = logits[kept], scaled[kept], spread[kept]
    chosen = gumbel_argmax(scaled, spread, key)
    if top_p < 1.0:
        # The winner of all is the winner of the nucleus if it lies there. If not, nothing as unlikely does.
        mass = np.exp(scaled)
        nucleus = np.float32(top_p) * mass.sum()
        above = np.flatnonzero(logits > logits[chosen])
        while len(above) and mass[above].sum() >= nucleus:
            logits, scaled, spread, mass = logits[above], scaled[above], spread[above], mass[above]
            kept = above if kept is None else kept[above]
            chosen = gumbel_argmax(scaled, spread, key)
            above = np.flatnonzero(logits > logits[chosen])
    return chosen if kept is None else int(kept[chosen])


def _kth_largest(logits: np.ndarray, k: int) -> np.float32:
    """Of `logits` [vocab]; all of them reach it if there are no more than k."""
    if k >= len(logits):
        return np.float32(-np.inf)
    groups = len(logits) // _GROUP
    if k <= groups // 4:
        # k groups have a maximum that reaches this, so as many tokens do, and not many more.
        peaks = logits[: groups * _GROUP].reshape(groups, _GROUP).max(1)
        logits = logits[logits >= np.partition(peaks, -k)[-k]]
    return np.partition(logits, -k)[-k]
