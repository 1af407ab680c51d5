"""The distinct tokens of a text, kept up to date while it grows: penalties need them at every step."""

from __future__ import annotations

import numpy as np


class TextTokens:
    """Which tokens a text has, and how often each was generated; a new token costs the same however long the text."""

    def __init__(self, num_prompt_tokens: int) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._length = 0  # of the text that is counted
        self._place: dict[int, int] = {}
        self._ids = np.empty(0, np.int32)
        self._times = np.empty(0, np.float32)

    @property
    def ids(self) -> np.ndarray:
        """[S] int32, each once."""
        return self._ids[: len(self._place)]

    @property
    def times(self) -> np.ndarray:
        """[S] float32: how often each of `ids` was generated; 0 for what only the prompt has."""
        return self._times[: len(self._place)]

    def update(self, tokens: np.ndarray) -> None:
        """`tokens` [any] int32 is the whole text, of which the beginning is known already."""
        if self._length >= self._num_prompt_tokens and self._length > 0:
            for token in tokens[self._length :].tolist():
                self._add_generated(token)
        else:
            self._count(tokens)
        self._length = len(tokens)

    def _count(self, tokens: np.ndarray) -> None:
        self._ids, index = np.unique(tokens, return_inverse=True)
        self._times = np.bincount(index[self._num_prompt_tokens :], minlength=len(self._ids)).astype(np.float32)
        self._place = {token: place for place, token in enumerate(self._ids.tolist())}

    def _add_generated(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            more = max(len(self._ids), 64)
            self._ids = np.concatenate((self._ids, np.zeros(more, np.int32)))
            self._times = np.concatenate((self._times, np.zeros(more, np.float32)))
        self._ids[place] = token
        self._times[place] += 1.0
