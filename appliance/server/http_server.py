"""Serves one application over HTTP, and drains before it closes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl

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
        if listening is not None:
            await self.accept(listening)

    async def accept(self, listening: Listening) -> None:
        """From now on serve the connections that come in at `listening`, too."""
        for listener in listening.sockets:
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

    def drain(self, deadline: float) -> None:
        """Take only what can end before `deadline`, in `time.monotonic()` seconds; what still runs then is ended.

        May be called again, to move the deadline.
        """
        self._context.draining = True
        self._context.limits.drain(deadline)
        self._context.engine.drain(deadline)

    def cancel_drain(self) -> None:
        self._context.draining = self._context.drained = False
        self._context.limits.drain(None)
        self._context.engine.drain(None)

    async def drained(self) -> None:
        """Returns when nothing runs any more; from then on nothing is taken."""
        await self._context.limits.idle()
        self._context.drained = self._context.draining

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
