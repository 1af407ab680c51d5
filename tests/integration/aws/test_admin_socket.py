"""The watcher and the server mean the same by a drain: the action against the server's own admin socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.aws.actions.action import ActionError
from appliance.aws.actions.drain import Drain
from appliance.aws.admin_client import AdminClient, AdminError
from appliance.aws.events import Event, Kind
from appliance.server.admin import AdminServer
from appliance.server.drain_control import DrainControl
from tests.support.eventually import eventually


class Requests:
    """What drains: as long as a test wants."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()
        self.deadlines: list[float] = []

    def drain(self, deadline: float, *, final: bool) -> None:
        self.deadlines.append(deadline)

    def cancel_drain(self) -> None: ...

    async def drained(self) -> None:
        await self.idle.wait()


@pytest.fixture
def requests() -> Requests:
    return Requests()


@pytest.fixture
async def control(tmp_path: Path, requests: Requests) -> AsyncIterator[DrainControl]:
    control = DrainControl(requests, timeout=60)
    server = AdminServer(control)
    await server.start(str(tmp_path / "admin.sock"), [])
    yield control
    await server.stop()


@pytest.fixture
def client(tmp_path: Path) -> AdminClient:
    return AdminClient(str(tmp_path / "admin.sock"))


def notice(seconds: float) -> Event:
    deadline = datetime.now(UTC) + timedelta(seconds=seconds)
    return Event(identity="a", kind=Kind.SPOT_INTERRUPTION, summary="it goes", deadline=deadline)


async def test_a_notice_drains_moves_and_is_cancelled(
    control: DrainControl, requests: Requests, client: AdminClient
) -> None:
    drain = Drain(client, {Kind.SPOT_INTERRUPTION}, 12, look_seconds=0.01)
    for seconds in (120, 60):
        acting = asyncio.create_task(drain.act(notice(seconds), moved=False))
        await eventually(
            lambda seconds=seconds: (
                control.state.deadline is not None and abs(control.state.deadline - time.monotonic() - seconds + 12) < 5
            )
        )
        acting.cancel()
    assert control.state.reason == "it goes"
    assert len(requests.deadlines) == 2
    await drain.undo(notice(60), "")
    assert control.state.state == "serving"


async def test_the_end_of_the_drain_is_noticed(control: DrainControl, requests: Requests, client: AdminClient) -> None:
    drain = Drain(client, {Kind.SPOT_INTERRUPTION}, 12, look_seconds=0.01)
    event = notice(120)
    acting = asyncio.create_task(drain.act(event, moved=False))
    waiting = asyncio.create_task(drain.wait_until_over(event))
    await eventually(lambda: control.state.state == "draining")
    requests.idle.set()
    await asyncio.wait_for(waiting, 20)
    acting.cancel()


async def test_a_server_that_is_ending_stays_so(control: DrainControl, client: AdminClient) -> None:
    control.terminate("a signal")
    await client.cancel_drain()
    assert (await client.drain_status()).state == "draining"


async def test_what_the_server_refuses_is_a_failure(
    control: DrainControl, client: AdminClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.aws.admin_client.rfc3339", lambda moment: "soon")
    with pytest.raises(AdminError, match="400"):
        await client.drain(datetime.now(UTC), "it goes")
    with pytest.raises(ActionError, match="400"):
        await Drain(client, {Kind.SPOT_INTERRUPTION}, 12).act(notice(120), moved=False)
