"""Server-sent events to one client, with comments that keep the connection alive while it waits."""

from __future__ import annotations

import asyncio
from types import TracebackType

from aiohttp import web
from aiohttp.http import HttpVersion11

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

    Events go straight to the transport: aiohttp's own `write` is a coroutine of three layers, and costs several times
    what is left here. The framing is that of RFC 9112, section 7.1; aiohttp announces it for HTTP/1.1 when a response
    has no length. Headers and the end of the body are aiohttp's.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers=_HEADERS)
        self._chunked = request.version >= HttpVersion11
        self._clock = asyncio.get_running_loop().time
        self._last_write = 0.0
        self._pinger: asyncio.Task[None] | None = None

    @property
    def response(self) -> web.StreamResponse:
        return self._response

    def send(self, events: bytes) -> bool:
        """Send `events`. False when the client is slow: wait for `ready` before more.

        Raises ConnectionError when the client is gone.
        """
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client closed the connection")
        self._last_write = self._clock()
        transport.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)
        return not self._request.protocol.writing_paused

    async def ready(self) -> None:
        """Wait until the client has read most of what was sent. Raises ConnectionError when it is gone."""
        await self._request.writer.drain()

    async def __aenter__(self) -> EventStream:
        await self._response.prepare(self._request)
        self._last_write = self._clock()
        self._pinger = asyncio.create_task(self._ping())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._pinger is not None:
            self._pinger.cancel()
        if error is None:
            await self._response.write_eof()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._last_write + PING_SECONDS - self._clock())
            if self._clock() - self._last_write >= PING_SECONDS:
                try:
                    self.send(_PING)
                except ConnectionError:
                    return  # aiohttp cancels the handler by itself
