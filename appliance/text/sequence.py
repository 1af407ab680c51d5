"""What the engine says about one sequence, with its text: the part that server and offline `LLM` share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import FinishReason, TokenDelta, TokenLogprobs
from appliance.text.stream import TextDelta, TextStream
from appliance.text.tokenizer import Tokenizer

_NO_TEXT = TextDelta("")


class SequenceDelta(NamedTuple):
    """What one engine delta added to a sequence; the last one has a finish reason."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None  # stop string or stop token id; None for the end-of-sequence token
    abort_engine: bool  # a stop string ended it: tell the engine, which doesn't know


class SequenceStream:
    """Turns the engine's `TokenDelta`s of one sequence into text and the final finish reason.

    Without a tokenizer (`skip_tokenizer_init`) all texts are empty.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        def begin() -> TextStream | None:
            return None if tokenizer is None else TextStream(tokenizer, prompt_token_ids, params)

        self._begin = begin
        self._text = begin()
        self._last_has_no_text = False
        self.num_tokens = 0  # generated, the one that ended it included
        self.finish_reason: FinishReason | None = None

    def push(self, delta: TokenDelta) -> SequenceDelta | None:
        """The sequence's next part; None when it has finished before (an abort takes a moment to reach the engine)."""
        if self.finish_reason is not None:
            return None
        self.num_tokens += len(delta.token_ids)
        text = _NO_TEXT
        if self._text is not None:
            finished, by_token = delta.finish_reason is not None, delta.finish_reason == "stop"
            text = self._text.push(delta.token_ids, finished, drop_last=by_token)
            self._last_has_no_text = by_token
        self.finish_reason = "stop" if text.stopped else delta.finish_reason
        return SequenceDelta(
            text=text.text,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish_reason=self.finish_reason,
            stop_reason=text.stop_reason if text.stopped else delta.stop_reason,
            abort_engine=text.stopped and delta.finish_reason is None,
        )

    def text_of(self, token_ids: Sequence[int]) -> str:
        """What was shown of the sequence, whose tokens so far are `token_ids`: texts do not depend on how they came."""
        text = self._begin()
        if text is None:
            return ""
        return text.push(token_ids, self.finish_reason is not None, drop_last=self._last_has_no_text).text
