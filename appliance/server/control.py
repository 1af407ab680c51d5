"""What the parent of several server processes and each of them say to each other, over a socket pair.

A frame is a 4-byte big-endian length and that many bytes of MessagePack. That the channel closes is a message as well:
to a server process, that it shall end; to the parent, that the process has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec

from appliance.server.metric_families import Family

_HEADER_BYTES = 4


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


# ---- parent -> server process ----------------------------------------------------------------------------------------


class EngineExit(_Message, frozen=True):
    """As `EngineSupervisor` reports it."""

    reason: str
    final: bool


class Drain(_Message, frozen=True):
    """Answered by `Drained`. `deadline` is `time.monotonic()`, which all processes of a machine share."""

    number: int  # of the drain; a moved deadline makes no other one
    deadline: float
    leave: bool  # and leave idle connections to the server that comes after this one


class CancelDrain(_Message, frozen=True):
    pass


class ReloadKeys(_Message, frozen=True):
    pass


class CollectMetrics(_Message, frozen=True):
    """Answered by `OwnMetrics`."""

    ticket: int


class AllMetrics(_Message, frozen=True):
    """The answer to `ScrapeMetrics`: what all processes counted, those included that have ended."""

    ticket: int
    families: list[Family]


ToProcess = EngineExit | Drain | CancelDrain | ReloadKeys | CollectMetrics | AllMetrics

# ---- server process -> parent ----------------------------------------------------------------------------------------


class TokenizerLoaded(_Message, frozen=True):
    """From now on this process is as ready as the engine is."""


class Drained(_Message, frozen=True):
    number: int


class ScrapeMetrics(_Message, frozen=True):
    ticket: int


class OwnMetrics(_Message, frozen=True):
    ticket: int
    families: list[Family]


ToParent = TokenizerLoaded | Drained | ScrapeMetrics | OwnMetrics

to_process: msgspec.msgpack.Decoder[ToProcess] = msgspec.msgpack.Decoder(ToProcess)
to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)

_Received = TypeVar("_Received")
_encoder = msgspec.msgpack.Encoder()


def frame(message: ToProcess | ToParent) -> bytes:
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


async def messages(
    reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[_Received]
) -> AsyncIterator[_Received]:
    """All that comes until the channel closes."""
    try:
        while True:
            length = int.from_bytes(await reader.readexactly(_HEADER_BYTES), "big")
            yield decoder.decode(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return
