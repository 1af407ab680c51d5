"""Server-sent events to one client, with comments that keep the connection alive while it waits."""

from __future__ import annotations

import asyncio
from types import TracebackType

from aiohttp import web

PING_SECONDS = 15.0
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # NGINX must not collect what is meant to arrive token by token
}


def event(data: bytes) -> bytes:
    """`data` (JSON, which never holds a raw line break) as one event."""
    return b"data: " + data + b"\n\n"


class EventStream:
    """An open event stream; `async with` sends the headers at once and the end of the body at the end.

    A slow client makes `send` wait. A client that is gone makes it raise ConnectionError.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)
        self._last_write = 0.0
        self._pinger: asyncio.Task[None] | None = None

    @property
    def response(self) -> web.StreamResponse:
        return self._response

    async def send(self, events: bytes) -> None:
        self._last_write = asyncio.get_running_loop().time()
        await self._response.write(events)

    async def __aenter__(self) -> EventStream:
        await self._response.prepare(self._request)
        self._last_write = asyncio.get_running_loop().time()
        self._pinger = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        # Only now, never while `send` waits: both wait for one future of aiohttp's, and cancelling one cancels both.
        if self._pinger is not None:
            self._pinger.cancel()
        if error is None:
            await self._response.write_eof()

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._last_write + PING_SECONDS - loop.time())
            if loop.time() - self._last_write >= PING_SECONDS:
                self._last_write = loop.time()
                try:
                    await self._response.write(_PING)
                except ConnectionError:
                    return  # aiohttp cancels the handler by itself
