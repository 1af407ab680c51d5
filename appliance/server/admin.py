"""What administrators and the spot watcher may do, at a Unix socket of its own: `/admin/drain`."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from aiohttp import web

from appliance.lifecycle.drain_state import DrainIsFinal, State
from appliance.server.drain_control import DrainControl

MODE = 0o660
MAX_REASON = 200


class DrainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`deadline`: seconds from now, or a time as RFC 3339 has it; null: drain-timeout from now."""

    deadline: float | datetime | None = None
    reason: str = "asked for at the admin socket"


class DrainStatus(msgspec.Struct):
    state: State
    deadline: datetime | None
    seconds_left: float | None
    reason: str | None


class AdminServer:
    """Serves one `DrainControl`. Who may open the socket may do everything here."""

    def __init__(self, control: DrainControl) -> None:
        self._control = control
        app = web.Application()
        app.router.add_get("/admin/drain", self._status)
        app.router.add_post("/admin/drain", self._drain)
        app.router.add_delete("/admin/drain", self._cancel)
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None)

    async def start(self, path: str | None, inherited: Sequence[socket.socket]) -> None:
        """Listen at the `inherited` sockets, else at `path`, else nowhere. Raises OSError."""
        listeners = list(inherited) or ([] if path is None else [_listener(Path(path))])
        await self._runner.setup()
        for listener in listeners:
            await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _status(self, request: web.Request) -> web.Response:
        return self._answer()

    async def _drain(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            asked = msgspec.json.decode(body, type=DrainRequest) if body else DrainRequest()
            self._control.drain(_monotonic(asked.deadline), asked.reason[:MAX_REASON])
        except (msgspec.DecodeError, ValueError) as error:
            return _refusal(400, str(error))
        return self._answer()

    async def _cancel(self, request: web.Request) -> web.Response:
        try:
            self._control.cancel()
        except DrainIsFinal as error:
            return _refusal(409, str(error))
        return self._answer()

    def _answer(self) -> web.Response:
        state, deadline, left = self._control.state, None, None
        if state.deadline is not None:
            left = state.deadline - time.monotonic()
            deadline = datetime.fromtimestamp(time.time() + left, UTC)
        status = DrainStatus(state.state, deadline, None if left is None else max(0.0, left), state.reason)
        return web.Response(body=msgspec.json.encode(status), content_type="application/json")


def _monotonic(deadline: float | datetime | None) -> float | None:
    """Raises ValueError."""
    if deadline is None:
        return None
    if isinstance(deadline, datetime):
        if deadline.tzinfo is None:
            raise ValueError("`deadline` needs a time zone, such as the Z of 2030-01-31T12:00:00Z")
        deadline = deadline.timestamp() - time.time()
    elif deadline < 0:
        raise ValueError("`deadline` must not be negative: it is in seconds from now")
    return time.monotonic() + deadline


def _refusal(status: int, message: str) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode({"error": {"message": message}}), content_type="application/json"
    )


def _listener(path: Path) -> socket.socket:
    if path.is_socket():  # of a server that was killed
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        path.chmod(MODE)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
