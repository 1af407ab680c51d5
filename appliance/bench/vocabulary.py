"""Texts of an exact number of tokens, for whatever vocabulary the model has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from appliance.bench.words import WORDS

_MIN_WORDS = 50  # fewer would make prompts so alike that a prefix cache finds what it should not


class TokenCounter(Protocol):
    async def count(self, text: str) -> int:
        """Tokens of `text`, those included that the tokenizer adds at its beginning or end."""
        ...


class VocabularyError(Exception):
    """No text of an exact length can be made; the message says why and what to do."""


class Vocabulary:
    """Words that are one token each after a space, so `n` of them are a text of `n` tokens."""

    def __init__(self, words: Sequence[str], special_tokens: int) -> None:
        self._words = words
        self.special_tokens = special_tokens  # that the tokenizer adds to every text, such as begin-of-sequence

    @classmethod
    async def of(cls, counter: TokenCounter) -> Vocabulary:
        """Find the words. Raises `VocabularyError` for a tokenizer that splits nearly all of them."""
        once, twice = [await counter.count(text) for text in (" dog", " dog dog")]
        special_tokens = 2 * once - twice
        words = await _single_tokens(counter, WORDS, special_tokens)
        if len(words) < _MIN_WORDS:
            raise VocabularyError(
                f"only {len(words)} of {len(WORDS)} common words are one token of this model, too few to make texts of "
                "an exact length; give prompts of your own with --dataset text"
            )
        return cls(words, special_tokens)

    def text(self, tokens: int, rng: random.Random) -> str:
        """`tokens` random words, each after a space."""
        return "".join(f" {word}" for word in rng.choices(self._words, k=tokens))


async def _single_tokens(counter: TokenCounter, words: Sequence[str], special_tokens: int) -> list[str]:
    """Those of `words` that are one token after a space. Halves the words until each part is all or nothing."""
    if await counter.count("".join(f" {word}" for word in words)) == len(words) + special_tokens:
        return list(words)
    if len(words) == 1:
        return []
    middle = len(words) // 2
    first = await _single_tokens(counter, words[:middle], special_tokens)
    return first + await _single_tokens(counter, words[middle:], special_tokens)
