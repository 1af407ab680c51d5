"""Draining as operators see it: the admin socket, `pagebox drain`, and what clients are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.cli.main import main
from appliance.server.admin import AdminServer
from appliance.server.drain_control import DrainControl
from appliance.server.http_server import HttpServer
from tests.integration.server.harness import Server, eventually

TEXT = "/v1/completions"


class Front:
    """As in `appliance.server.serve`, around the harness's server."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    def drain(self, deadline: float, *, final: bool) -> None:
        self._server.drain(deadline)

    def cancel_drain(self) -> None:
        self._server.cancel_drain()

    async def drained(self) -> None:
        await self._server.drained()


@pytest.fixture
async def control(server: Server, tmp_path: Path) -> AsyncIterator[DrainControl]:
    control = DrainControl(Front(server.http_server), timeout=30)
    admin = AdminServer(control)
    await admin.start(str(tmp_path / "admin.sock"), [])
    yield control
    await admin.stop()


async def ask(tmp_path: Path, method: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    connector = aiohttp.UnixConnector(str(tmp_path / "admin.sock"))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, "http://pagebox/admin/drain", json=body) as response,
    ):
        return response.status, await response.json()


async def pagebox(tmp_path: Path, *words: str) -> int:
    return await asyncio.to_thread(main, ["drain", "--admin-socket", str(tmp_path / "admin.sock"), *words])


async def hold(server: Server) -> asyncio.Task[tuple[int, Any]]:
    """A request that runs until the test lets it."""
    server.engine.hold = True
    task = asyncio.create_task(server.post(TEXT, {"prompt": "a", "max_tokens": 3}))
    await eventually(lambda: len(server.engine.running) == 1)
    return task


async def test_a_drain_begins_is_moved_and_is_cancelled(server: Server, control: DrainControl, tmp_path: Path) -> None:
    assert (await ask(tmp_path, "GET"))[1]["state"] == "serving"
    running = await hold(server)
    _, status = await ask(tmp_path, "POST", {"deadline": 60, "reason": "maintenance"})
    assert (status["state"], status["reason"]) == ("draining", "maintenance")
    assert 55 < status["seconds_left"] <= 60
    assert (await server.get("/readyz"))[0] == 503
    moment = datetime.now(UTC) + timedelta(seconds=20)
    _, status = await ask(tmp_path, "POST", {"deadline": moment.isoformat(), "reason": "a notice"})
    assert 15 < status["seconds_left"] <= 20
    assert 15 < (server.context.limits.drain_seconds_left or 0) <= 20
    assert (await ask(tmp_path, "DELETE"))[1]["state"] == "serving"
    assert server.context.limits.drain_seconds_left is None
    assert (await server.get("/readyz"))[0] == 200
    server.engine.hold = False
    assert (await running)[0] == 200
    assert (await server.post(TEXT, {"prompt": "a", "max_tokens": 1}))[0] == 200


async def test_a_moved_deadline_ends_what_runs(server: Server, control: DrainControl, tmp_path: Path) -> None:
    running = await hold(server)
    await ask(tmp_path, "POST", {"deadline": 60})
    await ask(tmp_path, "POST", {"deadline": 0.05})
    status, reply = await running
    assert (status, reply["error"]["code"]) == (503, "instance_draining")
    await eventually(lambda: control.state.state == "drained")
    assert (await ask(tmp_path, "POST", {"deadline": 60}))[1]["state"] == "drained"
    assert (await ask(tmp_path, "DELETE"))[1]["state"] == "serving"


async def test_who_is_refused_is_sent_elsewhere(server: Server, control: DrainControl, tmp_path: Path) -> None:
    await ask(tmp_path, "POST", {"deadline": 60})
    await eventually(lambda: control.state.state == "drained")
    async with server.http.post(server.url + TEXT, json={"prompt": "a", "stream": True}) as response:
        assert response.status == 503
        headers = response.headers
        assert (headers["Retry-After"], headers["X-Should-Retry"], headers["Connection"]) == ("1", "true", "close")
        assert (await response.json())["error"]["code"] == "instance_draining"


async def test_a_second_signal_hurries_and_a_signal_is_not_cancelled(
    server: Server, control: DrainControl, tmp_path: Path
) -> None:
    running = await hold(server)
    control.terminate("SIGTERM")
    assert (await ask(tmp_path, "DELETE"))[0] == 409
    assert control.state.state == "draining"
    began = time.monotonic()
    control.terminate("SIGTERM")
    await control.ended()
    assert time.monotonic() - began < 10
    assert (await running)[0] == 503


async def test_the_command_drains_waits_and_cancels(
    server: Server, control: DrainControl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await pagebox(tmp_path, "--status") == 0
    assert capsys.readouterr().out == "Serving.\n"
    assert await pagebox(tmp_path, "--deadline", "2m", "--reason", "kernel update", "--wait", "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["reason"]) == ("drained", "kernel update")
    assert await pagebox(tmp_path, "--cancel") == 0
    assert capsys.readouterr().out == "Serving.\n"
    assert main(["drain", "--admin-socket", str(tmp_path / "nowhere")]) == 1
    assert "no server has its admin socket" in capsys.readouterr().err


@pytest.mark.parametrize(
    "body", [{"deadline": -1}, {"deadline": "tomorrow"}, {"deadline": "2030-01-31T12:00:00"}, {"x": 1}]
)
async def test_what_cannot_be_understood_changes_nothing(
    server: Server, control: DrainControl, tmp_path: Path, body: dict[str, Any]
) -> None:
    assert (await ask(tmp_path, "POST", body))[0] == 400
    assert control.state.state == "serving"
