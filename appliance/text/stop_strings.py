"""Finds stop strings in text that comes in pieces, and holds back what may yet become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopResult(NamedTuple):
    """`text` may be shown now; `stop` is the stop string that ended it, if one did."""

    text: str
    stop: str | None


class StopStrings:
    """The text ends at the first character that completes a stop string; if several end there, the longest counts.

    So the outcome depends on the text alone, not on how it was cut into pieces. Matching is Knuth, Morris and Pratt's
    (SIAM J. Comput. 6, 1977), one automaton a string: linear in the text, whatever the strings.
    """

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self._patterns = [_Pattern(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._include = include_in_output
        self._held = ""

    def push(self, text: str, *, ignore: bool = False) -> StopResult:
        """Take more text. With `ignore`, strings that are completed in it don't count, only ones that begin in it."""
        if not self._patterns:
            return StopResult(text, None)
        end, found = len(text) + 1, None
        for pattern in self._patterns:
            completed = pattern.feed(text, end - 1, ignore=ignore)
            if completed is not None and completed < end:
                end, found = completed, pattern
        everything = self._held + text
        if found is not None:
            cut = len(self._held) + end - (0 if self._include else len(found.stop))
            self._held = ""
            return StopResult(everything[:cut], found.stop)
        held = max(pattern.matched for pattern in self._patterns)
        self._held = everything[len(everything) - held :]
        return StopResult(everything[: len(everything) - held], None)

    def finish(self) -> str:
        """No more text comes: what was held back."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string and how much of it the text's end matches."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _fallback_table(stop)

    def feed(self, text: str, limit: int, *, ignore: bool) -> int | None:
        """Advance over `text[:limit]`; the number of characters up to the end of the first match, None without one."""
        stop, fallback, matched = self.stop, self._fallback, self.matched
        position = 0
        while position < limit:
            if matched == 0:
                position = text.find(stop[0], position, limit)
                if position < 0:
                    break
            character = text[position]
            while matched and character != stop[matched]:
                matched = fallback[matched]
            matched += character == stop[matched]
            position += 1
            if matched == len(stop):
                if not ignore:
                    return position
                matched = fallback[matched]
        self.matched = matched
        return None


def _fallback_table(stop: str) -> list[int]:
    """Entry n: length of the longest proper prefix of `stop` that is also a suffix of its first n characters."""
    table = [0] * (len(stop) + 1)
    length = 0
    for n in range(1, len(stop)):
        while length and stop[n] != stop[length]:
            length = table[length]
        length += stop[n] == stop[length]
        table[n + 1] = length
    return table
