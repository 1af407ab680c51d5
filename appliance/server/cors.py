"""Cross-origin requests from browsers (https://fetch.spec.whatwg.org/#http-cors-protocol), if any origin is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

PREFLIGHT_SECONDS = 600


def cors_middleware(allowed_origins: Sequence[str]) -> Middleware:
    """Answers preflights; the other responses are marked where their headers are made."""

    @web.middleware
    async def preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or asked is None or allowed_origin(request, allowed_origins) is None:
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
                "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
            },
        )

    return preflight


def allowed_origin(request: web.Request, allowed_origins: Sequence[str]) -> str | None:
    """What `Access-Control-Allow-Origin` is for this request, if anything."""
    origin = request.headers.get("Origin")
    if origin is None:
        return None
    if "*" in allowed_origins:
        return "*"
    return origin if origin in allowed_origins else None
