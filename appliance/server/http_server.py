"""Serves one application over HTTP, and drains before it closes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time

from aiohttp import web

from appliance.server.context import CONTEXT
from appliance.server.listening import BACKLOG, Listening, tls_context
from appliance.server.malformed_http import ApiRunner

log = logging.getLogger(__name__)

# After the drain only idle connections and answers that are being written are left.
SHUTDOWN_SECONDS = 2.0


class HttpServer:
    """Serves one application. Cancels a handler as soon as its client is gone."""

    def __init__(self, app: web.Application) -> None:
        self._context = app[CONTEXT]
        self._runner = ApiRunner(
            app, handler_cancellation=True, shutdown_timeout=SHUTDOWN_SECONDS, handle_signals=False
        )
        self._tls: ssl.SSLContext | None = None
        self._handshakes: set[asyncio.Task[None]] = set()

    async def start(self, listening: Listening | None = None) -> None:
        """Serve the connections that come in at `listening`, if given, and those of `adopt`. Raises ssl.SSLError."""
        self._tls = tls_context(self._context.settings.server)
        await self._runner.setup()
        for listener in listening.sockets if listening is not None else ():
            await web.SockSite(self._runner, listener, ssl_context=self._tls, backlog=BACKLOG).start()

    def adopt(self, connection: socket.socket) -> None:
        """Serve a connection that somebody else accepted."""
        task = asyncio.create_task(self._begin(connection))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def leave(self) -> None:
        """Accept nothing more, and close what is idle: whoever connects from now on is for the server after this one.

        For sockets that the service manager holds as well; a client would be refused at others.
        """
        for site in list(self._runner.sites):
            await site.stop()
        assert self._runner.server is not None
        self._runner.server.pre_shutdown()

    async def drain(self) -> None:
        """Refuse new requests, and return when those that run have ended, at the latest after drain-timeout."""
        self._context.draining = True
        log.info("Draining: new requests are refused")
        await self._context.limits.drain(time.monotonic() + self._context.settings.server.drain_timeout)

    async def stop(self) -> None:
        """Close every connection and what the application started."""
        await self._runner.cleanup()

    async def _begin(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        assert self._runner.server is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._runner.server, connection, ssl=self._tls)
        except OSError as error:  # the client is gone, or does not speak TLS
            log.debug("A connection could not be served: %s", error)
            connection.close()
