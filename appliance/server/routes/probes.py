"""The probes, the only routes that anybody may call: they tell how the server is, and nothing else."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from appliance.server.body import json_response
from appliance.server.context import CONTEXT
from appliance.server.errors import RETRY_AFTER_SECONDS


class ProbeBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`elapsed` is seconds: since the server started, or since the phase began for `phase_elapsed`."""

    status: str
    reason: str | None = None
    phase: str | None = None
    detail: str | None = None
    progress: float | None = None
    elapsed: float | None = None
    phase_elapsed: float | None = None


async def livez(request: web.Request) -> web.StreamResponse:
    """The server process answers. Says nothing about the engine."""
    return json_response(ProbeBody(status="ok"))


async def readyz(request: web.Request) -> web.StreamResponse:
    """A request sent now would be decoded now; else 503 with the reason."""
    reason = request.app[CONTEXT].not_ready_reason()
    if reason is None:
        return json_response(ProbeBody(status="ok"))
    return _not_yet(ProbeBody(status="unavailable", reason=reason))


async def startupz(request: web.Request) -> web.StreamResponse:
    """The start is over; else 503 with how far it is. Stays 200 afterwards, whatever happens to the engine later."""
    context = request.app[CONTEXT]
    status = context.engine.status
    started = status.ready is not None and context.tokenizers.ready
    context.has_started = context.has_started or started
    if context.has_started:
        return json_response(ProbeBody(status="ok"))
    now = time.monotonic()
    detail = status.detail
    if status.ready is not None:
        detail = context.tokenizers.failure or "Loading the tokenizer"
    body = ProbeBody(
        status="starting",
        phase=status.phase,
        detail=detail,
        progress=status.progress,
        elapsed=round(now - context.started, 3),
        phase_elapsed=round(now - status.since, 3),
    )
    return _not_yet(body)


def _not_yet(body: ProbeBody) -> web.Response:
    response = json_response(body, 503)
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return response
