"""What happens around every handler: the record of the request, its key, its headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from appliance.server.auth import Access, Denied
from appliance.server.caller import CALLER, Caller
from appliance.server.context import CONTEXT
from appliance.server.request_log import log_request
from appliance.server.request_record import RECORD, RequestRecord, request_id_of
from appliance.server.routes.table import Route

CLIENT_CLOSED_REQUEST = 499  # NGINX's number for it; never on the wire


def observe_middleware(routes: Mapping[tuple[str, str], Route]) -> Middleware:
    """Outermost: every request gets a record, and ends in exactly one outcome."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        context = request.app[CONTEXT]
        record = request[RECORD] = RequestRecord(request_id_of(request.headers.get("X-Request-Id")))
        route = route_of(request, routes)
        status = 0
        try:
            response = await handler(request)
            status = response.status
            return response
        except ConnectionError:  # nobody reads this response; raising would make aiohttp log an error
            record.outcome = "disconnected"
            return web.Response(status=CLIENT_CLOSED_REQUEST)
        except asyncio.CancelledError:
            record.outcome = "disconnected"
            raise
        finally:
            outcome = record.outcome or "success"
            if route is None or not route.quiet:
                context.metrics.request_ended(outcome, record.key)
                if record.prompt_tokens:
                    context.metrics.tokens_used(record.key, record.prompt_tokens, record.completion_tokens)
                if route is None or route.access is not Access.ANYONE:
                    context.audit.request_ended(request, route.path if route else "(unknown)", status, outcome)
                if not context.settings.server.disable_log_requests:
                    log_request(record, request.method, route.path if route else "(unknown)", status, outcome)

    return observe


def auth_middleware(routes: Mapping[tuple[str, str], Route]) -> Middleware:
    """Everything needs a key but what says that anyone may call it; unknown routes too, so that nobody can probe.

    What the key may use in how much time counts around the handler, but for what machines ask every few seconds.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request, routes)
        if route is not None and route.access is Access.ANYONE:
            return await handler(request)
        context, record = request.app[CONTEXT], request[RECORD]
        try:
            record.key, key = context.keys.check(request.headers.get("Authorization"))
        except Denied as denied:
            record.key = denied.key_id
            raise
        caller = request[CALLER] = Caller(record.key, key, context.key_usage, context.metrics.key_refused)
        if route is not None and route.quiet:
            return await handler(request)
        with caller.request(record):
            return await handler(request)

    return authenticate


def route_of(request: web.Request, routes: Mapping[tuple[str, str], Route]) -> Route | None:
    """The route that was matched; None for an unknown path or method."""
    resource = request.match_info.route.resource
    if resource is None:
        return None
    method = "GET" if request.method == "HEAD" else request.method
    return routes.get((method, resource.canonical))


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal on_response_prepare: also for streams, whose headers leave before the handler returns."""
    if request.app[CONTEXT].draining:  # this connection leads to a server that is about to end
        response.headers["Connection"] = "close"
        response.force_close()
    record = request.get(RECORD)
    if record is not None:
        response.headers["X-Request-Id"] = record.request_id
        response.headers["OpenAI-Processing-Ms"] = str(int((time.monotonic() - record.started) * 1000))
    caller = request.get(CALLER)
    if caller is not None:
        response.headers.update(caller.headers())
