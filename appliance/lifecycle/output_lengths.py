"""How long an output will become, from how long those of lately became and how long it is already."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

# A length that outputs have where nothing is known: half of them are longer than this.
TYPICAL_TOKENS = 200


class OutputLengths:
    """The estimate of Kaplan and Meier (J. Am. Stat. Assoc. 53, 1958) of how many outputs outlive a length.

    An output that a limit or its client ended, and one that still runs, only says that it is longer than that. Beyond
    the longest one known the tail is Pareto's with exponent 1: what has become long goes on for about as long again.
    """

    def __init__(self, known: Iterable[tuple[int, bool]]) -> None:
        """`known`: lengths in tokens, and whether the output ended there by itself."""
        observed = sorted((tokens, not ended) for tokens, ended in known)  # what ends at a length ends before others go
        at_risk = len(observed) + 1  # one more that outlives them all, so that none is ever certain to have ended
        self._lengths, self._alive = [0], [1.0]
        for tokens, goes_on in observed:
            if not goes_on:
                self._append(tokens, self._alive[-1] * (1 - 1 / at_risk))
            at_risk -= 1
        self._area = self._areas()

    def chance(self, length: int, more: float) -> float:
        """That an output which has `length` tokens ends by itself within `more` of them, 0 to 1."""
        return 1.0 - self._outliving(length + more) / self._outliving(length) if more > 0 else 0.0

    def expected(self, length: int, most: int) -> float:
        """The mean of the tokens that an output of `length` still gets, if it gets `most` at most."""
        return (self._area_until(length + most) - self._area_until(length)) / self._outliving(length)

    def quantile(self, share: float) -> float:
        """The length that `share` of all outputs stay within."""
        outliving = 1.0 - share
        for i in range(1, len(self._lengths)):
            if self._alive[i] <= outliving:
                return self._lengths[i - 1] + (outliving - self._alive[i - 1]) / self._slope(i)
        return self._tail_scale * self._alive[-1] / outliving - TYPICAL_TOKENS

    def _append(self, length: int, alive: float) -> None:
        if length == self._lengths[-1] and length > 0:
            self._alive[-1] = alive
            return
        self._lengths.append(length)
        self._alive.append(alive)

    def _areas(self) -> list[float]:
        areas = [0.0]
        for i in range(1, len(self._lengths)):
            height = (self._alive[i - 1] + self._alive[i]) / 2
            areas.append(areas[-1] + height * (self._lengths[i] - self._lengths[i - 1]))
        return areas

    def _slope(self, i: int) -> float:
        """Before the length number `i`. Straight between lengths: a step would say that nothing ends in between."""
        return (self._alive[i] - self._alive[i - 1]) / (self._lengths[i] - self._lengths[i - 1])

    def _outliving(self, length: float) -> float:
        """The share of outputs that are longer."""
        if length >= self._lengths[-1]:
            return self._alive[-1] * self._tail_scale / (length + TYPICAL_TOKENS)
        i = bisect_right(self._lengths, length)
        return self._alive[i - 1] + self._slope(i) * (length - self._lengths[i - 1])

    def _area_until(self, length: float) -> float:
        """The integral of `_outliving` from 0 on."""
        if length >= self._lengths[-1]:
            grown = math.log((length + TYPICAL_TOKENS) / self._tail_scale)
            return self._area[-1] + self._alive[-1] * self._tail_scale * grown
        i = bisect_right(self._lengths, length)
        height = (self._alive[i - 1] + self._outliving(length)) / 2
        return self._area[i - 1] + height * (length - self._lengths[i - 1])

    @property
    def _tail_scale(self) -> float:
        return self._lengths[-1] + TYPICAL_TOKENS
