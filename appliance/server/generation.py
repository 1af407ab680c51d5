"""Runs the sequences of one HTTP request in the engine, and hands on what they add as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from appliance.engine.client import EngineClient, EngineError, EngineUnavailable
from appliance.protocol.openai.common import PromptTokensDetails, Usage
from appliance.protocol.wire import AddRequest, TokenDelta, TokenLogprobs
from appliance.server.admission import Ticket
from appliance.server.metrics import Metrics, SequenceTimings
from appliance.server.request_record import RequestRecord
from appliance.text.sequence import SequenceDelta, SequenceStream


class Shed(EngineUnavailable):
    """The engine has a deadline, and the request cannot end before it."""


@dataclass(slots=True)
class Sequence:
    """One sequence and what is known of it so far. Times are `time.monotonic()` seconds, durations seconds."""

    index: int  # of its choice in the reply
    prompt_index: int
    request: AddRequest
    stream: SequenceStream
    token_ids: list[int] = field(default_factory=list)  # generated, as far as they were handed on
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # with the first part, if asked for
    first_token: float | None = None
    last_delivery: float = 0.0
    queue_time: float | None = None
    prefill_time: float | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids) - self.request.num_resumed_tokens

    @property
    def num_generated(self) -> int:
        """Tokens, here: those that another machine generated before are none of ours."""
        return self.stream.num_tokens - self.request.num_resumed_tokens


class Sink(Protocol):
    """Gets what is due."""

    def take(self, sequence: Sequence, part: SequenceDelta) -> bool:
        """Called for each part of each sequence, where it arrives. False: no more until `ready` returns."""
        ...

    async def ready(self) -> None: ...


class Generation:
    """Leaving `run` early, by an error, a stop string or cancellation, aborts in the engine what still runs.

    With `prompt_only` the client asked for no token, and is billed for none: the one that the engine always makes does
    not count.
    """

    def __init__(
        self,
        engine: EngineClient,
        metrics: Metrics,
        record: RequestRecord,
        ticket: Ticket,
        sequences: list[Sequence],
        *,
        prompt_only: bool = False,
    ) -> None:
        self.sequences = sequences
        self._engine = engine
        self._metrics = metrics
        self._record = record
        self._ticket = ticket
        self._prompt_only = prompt_only

    async def run(self, sink: Sink) -> None:
        """Every part of every sequence goes to `sink`. Raises `EngineError`, and what `sink` raises."""
        first = self.sequences[0]
        n = len(self.sequences) // (self.sequences[-1].prompt_index + 1)
        self._metrics.request_started(n, first.request.sampling.max_tokens or 0)
        self._record.prompt_tokens = self.usage().prompt_tokens
        if len(self.sequences) == 1:
            await self._follow(first, sink)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for sequence in self.sequences:
                    group.create_task(self._follow(sequence, sink))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def usage(self) -> Usage:
        """Tokens so far. The prompt of `n` sequences counts once."""
        first_of_prompt = {sequence.prompt_index: sequence for sequence in reversed(self.sequences)}.values()
        prompt = sum(sequence.num_prompt_tokens for sequence in first_of_prompt)
        completion = 0 if self._prompt_only else sum(sequence.num_generated for sequence in self.sequences)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(s.num_cached_tokens for s in first_of_prompt)),
        )

    async def _follow(self, sequence: Sequence, sink: Sink) -> None:
        stream, one_by_one = sequence.stream, bool(sequence.request.sampling.stop)

        def consume(delta: TokenDelta) -> bool:
            if delta.finish_reason == "error":
                raise EngineError(delta.error or "The engine failed on this request.")
            if delta.finish_reason == "shed":
                raise Shed("This machine is about to end, and the request cannot finish before")
            if delta.finish_reason == "abort":
                raise EngineUnavailable("The engine gave this request up; send it again.")
            self._note(sequence, delta)
            wants_more = True
            for piece in _pieces(delta) if one_by_one else (delta,):
                part = stream.push(piece)
                assert part is not None, "no piece follows the one that finished the sequence"
                sequence.token_ids += part.token_ids
                wants_more = sink.take(sequence, part)
                if part.finish_reason is not None:
                    return False
            return wants_more

        outcome = "abort"
        try:
            with self._engine.generate(sequence.request) as deltas:
                while True:
                    await deltas.feed(consume)
                    if stream.finish_reason is not None:
                        break
                    await sink.ready()
        except EngineError:
            outcome = "error"
            raise
        finally:
            self._ended(sequence, stream.finish_reason or outcome)

    def _note(self, sequence: Sequence, delta: TokenDelta) -> None:
        now = time.monotonic()
        if delta.num_cached_tokens:
            cached = min(delta.num_cached_tokens, sequence.num_prompt_tokens)
            sequence.num_cached_tokens = max(sequence.num_cached_tokens, cached)
        if delta.prompt_logprobs is not None:
            sequence.prompt_logprobs = delta.prompt_logprobs
        if sequence.first_token is not None:
            self._metrics.tokens_delivered(now - sequence.last_delivery)
        elif delta.token_ids:
            sequence.first_token = now
            sequence.queue_time = delta.queue_time
            sequence.prefill_time = delta.prefill_time
            self._ticket.started(sequence.num_prompt_tokens)
            if self._record.first_token is None:
                self._record.first_token = now
        sequence.last_delivery = now

    def _ended(self, sequence: Sequence, outcome: str) -> None:
        started = self._record.started
        usage = self.usage()
        self._record.completion_tokens = usage.completion_tokens
        self._record.cached_tokens = usage.prompt_tokens_details.cached_tokens
        self._metrics.sequence_finished(
            SequenceTimings(
                finish_reason=outcome,
                prompt_tokens=sequence.num_prompt_tokens,
                generation_tokens=sequence.num_generated,
                end_to_end=time.monotonic() - started,
                time_to_first_token=None if sequence.first_token is None else sequence.first_token - started,
                queue=sequence.queue_time,
                prefill=sequence.prefill_time,
            )
        )


def _pieces(delta: TokenDelta) -> Iterator[TokenDelta]:
    """The tokens of `delta` one by one, so that none counts that follows the one which completes a stop string."""
    if len(delta.token_ids) < 2:
        yield delta
        return
    last = len(delta.token_ids) - 1
    for i, token in enumerate(delta.token_ids):
        logprobs = None if delta.logprobs is None else [delta.logprobs[i]]
        if i == last:
            yield msgspec.structs.replace(delta, token_ids=[token], logprobs=logprobs)
        else:
            yield TokenDelta(delta.request_id, [token], logprobs)
