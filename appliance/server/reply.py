"""What the replies of all generating routes have in common: identity, collecting, streaming."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from appliance.protocol.openai.common import StreamOptions, Usage
from appliance.protocol.wire import FinishReason, TokenLogprobs
from appliance.server.chunk_template import ChunkTemplate
from appliance.server.context import ServerContext
from appliance.server.errors import as_api_error
from appliance.server.generation import Generation, Sequence
from appliance.server.request_record import RECORD, RequestRecord
from appliance.server.resume import with_resume_handle
from appliance.server.sse import DONE, EventStream, event
from appliance.text.sequence import SequenceDelta


@dataclass(slots=True)
class ReplyHead:
    """Who answers: the same in every chunk of one reply."""

    id: str
    created: int
    model: str


def new_head(prefix: str, model: str) -> ReplyHead:
    return ReplyHead(id=f"{prefix}-{secrets.token_hex(16)}", created=int(time.time()), model=model)


def announced_usage(options: StreamOptions | None, usage: Usage | None) -> Usage | UnsetType | None:
    """The `usage` of a chunk: once a stream promises usage at all, its other chunks have a null there."""
    promised = options is not None and (options.include_usage or options.continuous_usage_stats)
    return usage if promised else UNSET


@dataclass(slots=True)
class Collected:
    """A whole sequence."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


class _Collector:
    """A `Sink` that keeps everything."""

    def __init__(self, results: dict[int, Collected]) -> None:
        self._results = results

    def take(self, sequence: Sequence, part: SequenceDelta) -> bool:
        result = self._results[sequence.index]
        result.texts.append(part.text)
        result.token_ids += part.token_ids
        result.logprobs += part.logprobs or ()
        result.finish_reason = part.finish_reason
        result.stop_reason = part.stop_reason
        return True

    async def ready(self) -> None:
        return


async def collect(generation: Generation, context: ServerContext, record: RequestRecord) -> list[Collected]:
    """All sequences, once they have ended."""
    results = {sequence.index: Collected() for sequence in generation.sequences}
    try:
        async with context.limits.limit(record.started):
            await generation.run(_Collector(results))
    except Exception as error:
        raise with_resume_handle(error, generation.sequences) from error
    return list(results.values())


class StreamedReply(Protocol):
    """Makes the chunks of one reply."""

    def chunk(self, sequence: Sequence, part: SequenceDelta, usage: Usage | None) -> msgspec.Struct | None:
        """None: nothing to send."""
        ...

    def text_chunk(self, index: int) -> Callable[[str], msgspec.Struct] | None:
        """Makes `chunk` of a part that only adds text to a choice which has begun; None if it takes more than that."""
        ...

    def usage_chunk(self, usage: Usage) -> msgspec.Struct: ...


class _Streamer:
    """A `Sink` that sends each part as one event."""

    def __init__(
        self, generation: Generation, reply: StreamedReply, options: StreamOptions | None, events: EventStream
    ) -> None:
        self._generation = generation
        self._reply = reply
        self._events = events
        self._continuous = options is not None and bool(options.continuous_usage_stats)
        self._templates: dict[int, ChunkTemplate | None] = {}  # by choice, once it has begun
        self.ready = events.ready

    def take(self, sequence: Sequence, part: SequenceDelta) -> bool:
        template = self._templates.get(sequence.index)
        if template is not None and part.finish_reason is None and part.logprobs is None:
            return self._events.send(template.event(part.text)) if part.text else True
        usage = self._generation.usage() if self._continuous else None
        chunk = self._reply.chunk(sequence, part, usage)
        if chunk is None:
            return True
        if sequence.index not in self._templates:
            make = None if self._continuous else self._reply.text_chunk(sequence.index)
            self._templates[sequence.index] = None if make is None else ChunkTemplate(make)
        return self._events.send(_encoded(chunk))


async def stream(
    request: web.Request,
    context: ServerContext,
    generation: Generation,
    options: StreamOptions | None,
    reply: StreamedReply,
) -> web.StreamResponse:
    """Sends the chunks of `reply`, the usage if asked for, and the end.

    An error after the headers is an event of its own, after which the stream ends without `[DONE]`.
    """
    async with EventStream(request) as events:
        try:
            async with context.limits.limit(request[RECORD].started):
                await generation.run(_Streamer(generation, reply, options, events))
                include_usage = options is not None and options.include_usage
                events.send((_encoded(reply.usage_chunk(generation.usage())) if include_usage else b"") + DONE)
        except ConnectionError:
            raise
        except Exception as error:
            record = request[RECORD]
            api_error = as_api_error(with_resume_handle(error, generation.sequences), record.request_id)
            record.outcome = api_error.outcome
            record.error_code = api_error.code
            events.send(event(api_error.body()))
    return events.response


def _encoded(chunk: msgspec.Struct) -> bytes:
    return event(msgspec.json.encode(chunk))
