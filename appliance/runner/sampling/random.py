"""Randomness that depends on a request's seed, a position and a token id alone.

Nothing is drawn from a shared stream, so a request gets the same tokens whatever else is in the batch, after a
preemption, and when it is resumed on another machine.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint32(0x9E3779B1)
_LARGEST_SHARE = np.float32(1.0 - 2.0**-24)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014): a bijection of 64 bits that passes BigCrush."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw_keys(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Two numbers for each (seed, position): [N] uint64 and [N] int64 to [N, 2] uint32."""
    with np.errstate(over="ignore"):
        stream = _mix(seeds + _GOLDEN)
        bits = _mix(stream + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return np.stack((bits.astype(np.uint32), (bits >> np.uint64(32)).astype(np.uint32)), 1)


def spread_tokens(vocab: int) -> np.ndarray:
    """[vocab] uint32, what `uniform` takes for each token id."""
    return np.arange(vocab, dtype=np.uint32) * _SPREAD


def uniform(tokens: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Numbers in (0, 1), [M] float32, for `tokens` [M] uint32, as `spread_tokens` has them, and a key [2] uint32.

    The 32-bit hash of two multiplications with the least bias that Wellons' search found (hash-prospector, 2018), with
    a key before each. It has its full 32 bits near 0.
    """
    x, shifted = tokens + key[0], np.empty_like(tokens)
    for shift, factor in ((16, np.uint32(0x21F0AAAD)), (15, np.uint32(0xD35A2D97))):
        np.bitwise_xor(x, np.right_shift(x, np.uint32(shift), out=shifted), out=x)
        np.multiply(x, factor, out=x)
        if shift == 16:
            np.add(x, key[1], out=x)
    np.bitwise_xor(x, np.right_shift(x, np.uint32(15), out=shifted), out=x)
    share = x.astype(np.float32)
    share += np.float32(0.5)
    share *= np.float32(2.0**-32)
    return np.minimum(share, _LARGEST_SHARE, out=share)


def gumbel_argmax(logits: np.ndarray, tokens: np.ndarray, key: np.ndarray) -> int:
    """Index of the largest of `logits` [M] float32 plus Gumbel noise: a draw from their softmax (Gumbel 1954).

    The noise of a token is -log(E) with E = -log(1 - `uniform(token, key)`). As E is never less than the number itself,
    one logarithm bounds what a token can reach, and only the few near the best need the second.
    """
    share = uniform(tokens, key)
    reach = np.log(share)
    np.subtract(logits, reach, out=reach)
    best = int(reach.argmax())
    near = np.flatnonzero(reach >= _perturbed(logits[best], share[best]) - np.float32(1e-4))
    if len(near) <= 1:
        return best
    return int(near[_perturbed(logits[near], share[near]).argmax()])


def _perturbed(logits: np.ndarray, share: np.ndarray) -> np.ndarray:
    return logits - np.log(-np.log1p(-share))
