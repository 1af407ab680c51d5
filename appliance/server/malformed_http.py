"""What is not HTTP is answered with OpenAI's error body, and noted in one line."""

from __future__ import annotations

import asyncio
import logging
import re

from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.http_exceptions import InvalidURLError

from appliance.server.context import CONTEXT, ServerContext
from appliance.server.errors import bad_request

log = logging.getLogger(__name__)

_QUOTED_BYTES = re.compile(r"[\s:]+(?:bytearray\()?b?['\"].*", re.DOTALL)


class ApiRunner(web.AppRunner):
    """An `AppRunner` whose connections answer malformed requests as the API answers every error.

    Such a request never reaches the application, so no middleware sees it: aiohttp (3.14) answers it in
    `RequestHandler.handle_error`, and has no setting for which `RequestHandler` a server makes. Hence a subclass of
    runner, server and handler; the server takes over the public attributes of the one that aiohttp makes.
    """

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(self.app[CONTEXT], made)


class _Server(web.Server):
    def __init__(self, context: ServerContext, made: web.Server) -> None:
        super().__init__(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
        )
        self._context = context

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._context)


class _Connection(web.RequestHandler):
    __slots__ = ("_context",)

    def __init__(self, server: web.Server, context: ServerContext) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), access_log=None)  # type: ignore[arg-type]
        self._context = context

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        reason = _reason(exc)
        self._context.metrics.request_ended("client_error", "")
        if not self._context.settings.server.disable_log_requests:
            log.info("Malformed HTTP from %s: %s", request.remote or "a Unix socket", reason)
        error = bad_request(f"The request is not valid HTTP: {reason}.", code="invalid_http")
        response = web.Response(
            status=error.status,
            body=error.body(),
            content_type="application/json",
            headers={"X-Should-Retry": "false"},
        )
        response.force_close()
        return response


def _reason(error: HttpProcessingError) -> str:
    """aiohttp's sentence without the bytes that it quotes, which may be a header with a key."""
    if isinstance(error, InvalidURLError):  # its message is the URL
        return "Invalid URL"
    return " ".join(_QUOTED_BYTES.sub("", error.message).split())
