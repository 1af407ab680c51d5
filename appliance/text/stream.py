"""The text of one sequence while its tokens come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from appliance.protocol.sampling_params import SamplingParams
from appliance.text.detokenizer import make_detokenizer
from appliance.text.stop_strings import StopStrings
from appliance.text.tokenizer import Tokenizer


class TextDelta(NamedTuple):
    """`text` may be shown; `stopped` when a stop string ended the text, which `stop_reason` then is."""

    text: str
    stopped: bool = False
    stop_reason: str | None = None


class TextStream:
    """Detokenizes a sequence and finds its stop strings. After `stopped` or `finished` it takes no more tokens.

    Shown text never has half a character in it, and never the beginning of what may become a stop string. Stop strings
    completed before `min_tokens` tokens don't count.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self._detokenizer = make_detokenizer(
            tokenizer,
            prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._stops = StopStrings(params.stop, include_in_output=params.include_stop_str_in_output)
        self._has_stops = bool(params.stop)
        self._show_stop_token = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int], finished: bool = False, *, drop_last: bool = False) -> TextDelta:
        """Take the next tokens; with `finished` they are the last ones and everything held back comes out.

        `drop_last`: the last token is the one that ended the sequence (end-of-sequence or a stop token id). It has no
        text, unless `include_stop_str_in_output` asks for it.
        """
        if not self._has_stops and not finished:  # nothing to search, to count or to hold back
            return TextDelta(self._detokenizer.push(token_ids))
        if drop_last and not self._show_stop_token:
            token_ids = token_ids[:-1]
        early = max(0, min(len(token_ids), self._min_tokens - 1 - self._num_tokens))
        self._num_tokens += len(token_ids)
        before = self._stops.push(self._detokenizer.push(token_ids[:early]), ignore=True).text if early else ""
        text, stop = self._stops.push(self._detokenizer.push(token_ids[early:]))
        if stop is None and finished:
            last, stop = self._stops.push(self._detokenizer.finish())
            text += last + (self._stops.finish() if stop is None else "")
        return TextDelta(before + text, stop is not None, stop)
