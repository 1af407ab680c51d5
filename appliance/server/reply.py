"""What the replies of all generating routes have in common: identity, collecting, streaming."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from aiohttp import web
from msgspec import UNSET, UnsetType

from appliance.protocol.openai.common import StreamOptions, Usage
from appliance.protocol.wire import FinishReason, TokenLogprobs
from appliance.server.context import ServerContext
from appliance.server.errors import as_api_error
from appliance.server.generation import Generation, Part
from appliance.server.request_record import RECORD, RequestRecord
from appliance.server.sse import DONE, EventStream, event


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


async def collect(generation: Generation, context: ServerContext, record: RequestRecord) -> list[Collected]:
    """All sequences, once they have ended."""
    results = [Collected() for _ in generation.sequences]

    async def sink(parts: list[Part]) -> None:
        for sequence, delta in parts:
            result = results[sequence.index]
            result.texts.append(delta.text)
            result.token_ids += delta.token_ids
            result.logprobs += delta.logprobs or ()
            result.finish_reason = delta.finish_reason
            result.stop_reason = delta.stop_reason

    async with context.limits.limit(record.started):
        await generation.run(sink)
    return results


async def stream(
    request: web.Request,
    context: ServerContext,
    generation: Generation,
    options: StreamOptions | None,
    chunk: Callable[[Part, Usage | None], msgspec.Struct | None],
    usage_chunk: Callable[[Usage], msgspec.Struct],
) -> web.StreamResponse:
    """Sends `chunk` of every part (None: nothing to send), the usage if asked for, and the end.

    An error after the headers is an event of its own, after which the stream ends without `[DONE]`.
    """
    continuous = options is not None and bool(options.continuous_usage_stats)
    async with EventStream(request) as events:

        async def sink(parts: list[Part]) -> None:
            usage = generation.usage() if continuous else None
            due = _encoded(chunk(part, usage) for part in parts)
            if due:
                await events.send(due)

        try:
            async with context.limits.limit(request[RECORD].started):
                await generation.run(sink)
                last = usage_chunk(generation.usage()) if options is not None and options.include_usage else None
                await events.send(_encoded([last]) + DONE)
        except ConnectionError:
            raise
        except Exception as error:
            record = request[RECORD]
            api_error = as_api_error(error, record.request_id)
            record.outcome = api_error.outcome
            record.error_code = api_error.code
            await events.send(event(api_error.body()))
    return events.response


def _encoded(chunks: Iterable[msgspec.Struct | None]) -> bytes:
    return b"".join(event(msgspec.json.encode(chunk)) for chunk in chunks if chunk is not None)
