"""What the server writes into the audit log: each request that needs a key, and each change of the keys."""

from __future__ import annotations

import logging
from pathlib import Path

from aiohttp import web

from appliance.keys.audit import AuditLog
from appliance.keys.errors import KeysError
from appliance.server.request_record import RECORD, Outcome

log = logging.getLogger(__name__)


class Audit:
    """Without a path nothing is written. A disk that is full stops no request; the log says so once."""

    def __init__(self, path: str | None) -> None:
        """Raises `KeysError` when the file cannot be written."""
        self._log = None if path is None else AuditLog(Path(path))
        self._failing = False

    def request_ended(self, request: web.Request, route: str, status: int, outcome: Outcome) -> None:
        if self._log is None:
            return
        record = request[RECORD]
        self.note(
            "request",
            key=record.key,
            client=_client(request),
            method=request.method,
            route=route,
            status=status or None,
            outcome=outcome,
            code=record.error_code,
            request_id=record.request_id,
            prompt_tokens=record.prompt_tokens or None,
            completion_tokens=record.completion_tokens or None,
        )

    def note(self, event: str, **facts: object) -> None:
        if self._log is None:
            return
        try:
            self._log.write(event, **facts)
            self._failing = False
        except (OSError, KeysError) as error:
            if not self._failing:
                log.error("The audit log cannot be written: %s", error)
            self._failing = True

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def _client(request: web.Request) -> str | None:
    """The address of the client; behind a proxy of this machine (a Unix socket, or loopback) what that one says."""
    if request.remote in (None, "", "127.0.0.1", "::1"):
        return request.headers.get("X-Forwarded-For", request.remote)
    return request.remote
