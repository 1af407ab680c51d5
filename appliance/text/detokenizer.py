"""Text from token ids, a few at a time: never half a character, never the whole text decoded again."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from appliance.text.tokenizer import Tokenizer

_PROMPT_TOKENS = 8  # enough to hold the longest unfinished UTF-8 sequence, and the space before a word
_LONGEST_WINDOW = 64  # tokens; a window this long that still ends in U+FFFD holds real garbage
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class ByteDetokenizer:
    """For tokenizers whose tokens are bytes (`ByteScheme`): the text is those bytes, decoded as they come.

    The concatenation of all that comes out equals decoding at once, with one deliberate exception: where sentencepiece
    byte tokens form invalid UTF-8, decoding at once turns the whole run of byte tokens into U+FFFD, valid characters
    included, but those have been shown by then, so only what is invalid becomes U+FFFD here.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        """`prompt_token_ids` go before: a character that the prompt begins is finished, a space after it is kept."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        scheme = tokenizer.byte_scheme
        self._at_start = scheme is not None and scheme.strips_first_space
        if self._at_start and any(i not in self._skipped for i in prompt_token_ids):
            self._at_start = False
        self.push(prompt_token_ids[-_PROMPT_TOKENS:])

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` completes."""
        skipped, token_bytes = self._skipped, self._tokenizer.token_bytes
        if len(token_ids) == 1:  # nearly always
            data = b"" if token_ids[0] in skipped else token_bytes(token_ids[0])
        else:
            data = b"".join([token_bytes(i) for i in token_ids if i not in skipped])
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class WindowDetokenizer:
    """For all other tokenizers: decodes a short window of tokens twice, and shows the difference.

    The window begins at the last token boundary where the text was whole, so that a token is always decoded with the
    neighbour that decides about the space between them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._options = (skip_special_tokens, spaces_between_special_tokens)
        self._shown: list[int] = list(prompt_token_ids[-_PROMPT_TOKENS:])
        self._pending: deque[int] = deque()

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` completes."""
        return "".join([self._push_one(token) for token in token_ids])

    def _push_one(self, token: int) -> str:
        self._pending.append(token)
        new = self._new_text()
        if not new or (new.endswith(_REPLACEMENT) and len(self._pending) < _LONGEST_WINDOW):
            return ""
        self._shown = list(self._pending)
        self._pending.clear()
        return new

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self._new_text() if self._pending else ""

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown, *self._options)
        return self._tokenizer.decode([*self._shown, *self._pending], *self._options)[len(before) :]


Detokenizer = ByteDetokenizer | WindowDetokenizer


def make_detokenizer(
    tokenizer: Tokenizer,
    prompt_token_ids: Sequence[int],
    *,
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
) -> Detokenizer:
    """The detokenizer that fits `tokenizer`."""
    if tokenizer.byte_scheme is not None:
        return ByteDetokenizer(tokenizer, prompt_token_ids, skip_special_tokens)
    return WindowDetokenizer(tokenizer, prompt_token_ids, skip_special_tokens, spaces_between_special_tokens)
