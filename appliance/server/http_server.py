"""Listens where the settings say, and drains before it closes."""

from __future__ import annotations

import logging
import ssl
import time

from aiohttp import web

from appliance.server.context import CONTEXT
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

    async def start(self) -> str:
        """Listen; returns the URL, with the port that was taken for port 0. Raises OSError or ssl.SSLError."""
        settings = self._context.settings.server
        await self._runner.setup()
        if settings.uds is not None:
            await web.UnixSite(self._runner, settings.uds).start()
            return f"unix:{settings.uds}"
        tls = _tls_context(settings.ssl_certfile, settings.ssl_keyfile)
        await web.TCPSite(self._runner, settings.host, settings.port, ssl_context=tls).start()
        port = self._runner.addresses[0][1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        return f"{'http' if tls is None else 'https'}://{host}:{port}{settings.root_path}"

    async def drain(self) -> None:
        """Refuse new requests, and return when those that run have ended, at the latest after drain-timeout."""
        self._context.draining = True
        log.info("Draining: new requests are refused")
        await self._context.limits.drain(time.monotonic() + self._context.settings.server.drain_timeout)

    async def stop(self) -> None:
        """Close every connection and what the application started."""
        await self._runner.cleanup()


def _tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context
