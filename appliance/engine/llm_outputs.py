"""What the offline `LLM` returns, named as vLLM names it."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.protocol.wire import FinishReason, TokenDelta, TokenLogprobs
from appliance.text.sequence import SequenceDelta
from appliance.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Logprob:
    """A token's natural-log probability at one position; rank 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


PositionLogprobs = dict[int, Logprob]  # by token id: the token at this position first, then the most likely ones


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` sequences of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # the one that ended it included
    cumulative_logprob: float | None = None  # sum over the tokens; None unless logprobs were asked for
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # stop string or stop token id; None for the end-of-sequence token
    error: str | None = None  # why, with finish reason "error"

    def append(self, delta: SequenceDelta, tokenizer: Tokenizer | None) -> None:
        """Add what the engine just produced. The caller puts the texts together."""
        self.token_ids.extend(delta.token_ids)
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        for position in delta.logprobs or ():
            self.logprobs = [] if self.logprobs is None else self.logprobs
            self.logprobs.append(position_logprobs(position, tokenizer))
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + position.logprobs[0]


@dataclass(slots=True)
class RequestOutput:
    """All that one prompt led to."""

    request_id: str
    prompt: str | None  # None when it was given as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[PositionLogprobs | None] | None = None  # entry 0 is None
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache by the first sequence

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)

    def take_prompt_facts(self, delta: TokenDelta, tokenizer: Tokenizer | None) -> None:
        """Keep what the first sequence's first delta says about the prompt."""
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = [
                None if position is None else position_logprobs(position, tokenizer)
                for position in delta.prompt_logprobs
            ]


def position_logprobs(position: TokenLogprobs, tokenizer: Tokenizer | None) -> PositionLogprobs:
    """One position in the form in which `LLM` returns it."""
    ranks = [position.rank, *range(1, len(position.token_ids))]
    found: PositionLogprobs = {}
    for token, logprob, rank in zip(position.token_ids, position.logprobs, ranks, strict=True):
        if token not in found:
            found[token] = Logprob(logprob, rank, "" if tokenizer is None else tokenizer.token_text(token))
    return found
