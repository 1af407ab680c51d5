"""The drain is asked for, kept up, moved and cancelled; and others' drains are left alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.aws.actions.action import ActionError
from appliance.aws.actions.drain import NOBODY_SERVES_SECONDS, Drain
from appliance.aws.admin_client import AdminClient
from appliance.aws.events import Event, Kind
from tests.support.admin_double import AdminDouble
from tests.support.eventually import eventually

DEADLINE = datetime(2026, 11, 24, 10, 2, tzinfo=UTC)


def event(name: str = "a", deadline: datetime | None = DEADLINE) -> Event:
    return Event(identity=name, kind=Kind.SPOT_INTERRUPTION, summary=f"event {name}", deadline=deadline)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "admin.sock"


@pytest.fixture
async def server(socket: Path) -> AsyncIterator[AdminDouble]:
    async with AdminDouble().serving(socket) as double:
        yield double


@pytest.fixture
def drain(socket: Path) -> Drain:
    return Drain(AdminClient(str(socket)), {Kind.SPOT_INTERRUPTION}, 12.0, look_seconds=0.01)


@asynccontextmanager
async def acting(drain: Drain, *events: Event) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(drain.act(event, moved=False)) for event in events]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_drain_ends_the_margin_before_the_machine_goes(drain: Drain, server: AdminDouble) -> None:
    async with acting(drain, event()):
        await eventually(lambda: server.state == "draining")
    assert server.posts == [{"deadline": "2026-11-24T10:01:48Z", "reason": "event a"}]


async def test_without_a_deadline_the_server_uses_its_own(drain: Drain, server: AdminDouble) -> None:
    async with acting(drain, event(deadline=None)):
        await eventually(lambda: server.state == "draining")
    assert server.posts[0]["deadline"] is None


async def test_it_is_asked_for_once_however_often_it_is_looked_at(drain: Drain, server: AdminDouble) -> None:
    async with acting(drain, event()):
        await eventually(lambda: server.state == "draining")
        await asyncio.sleep(0.1)
    assert len(server.posts) == 1


async def test_a_server_that_was_restarted_drains_again(drain: Drain, server: AdminDouble) -> None:
    async with acting(drain, event()):
        await eventually(lambda: server.state == "draining")
        server.state = "serving"
        await eventually(lambda: server.state == "draining")
    assert len(server.posts) == 2


async def test_of_two_events_the_earlier_counts_and_the_last_one_over_cancels(
    drain: Drain, server: AdminDouble
) -> None:
    first, second = event("a", DEADLINE), event("b", DEADLINE - timedelta(seconds=30))
    async with acting(drain, first, second):
        await eventually(lambda: server.deadline == "2026-11-24T10:01:18Z")
        await drain.undo(second, "")
        await eventually(lambda: server.deadline == "2026-11-24T10:01:48Z")
    await drain.undo(first, "")
    assert (server.state, server.cancelled) == ("serving", 1)


async def test_a_person_who_wants_it_sooner_is_not_overruled(drain: Drain, server: AdminDouble) -> None:
    server.state, server.deadline = "draining", "2026-11-24T10:00:00Z"
    async with acting(drain, event()):
        await asyncio.sleep(0.1)
    assert server.posts == []


async def test_a_drain_that_is_too_slow_for_the_notice_is_moved(drain: Drain, server: AdminDouble) -> None:
    server.state, server.deadline = "draining", "2026-11-24T11:00:00Z"
    async with acting(drain, event()):
        await eventually(lambda: server.deadline == "2026-11-24T10:01:48Z")


async def test_an_event_that_was_not_drained_for_cancels_nobodys_drain(drain: Drain, server: AdminDouble) -> None:
    server.state = "draining"
    await drain.undo(event(), "")
    assert (server.state, server.cancelled) == ("draining", 0)


async def test_it_is_over_when_the_server_has_drained(drain: Drain, server: AdminDouble) -> None:
    waiting = asyncio.create_task(drain.wait_until_over(event()))
    await asyncio.sleep(0.02)
    assert not waiting.done(), "nobody has asked for it yet: that is not the same as over"
    async with acting(drain, event()):
        await eventually(lambda: server.state == "draining")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        server.state = "drained"
        await asyncio.wait_for(waiting, 5)


async def test_there_is_nothing_to_wait_for_where_such_events_drain_nothing(drain: Drain) -> None:
    other = Event(identity="x", kind=Kind.GPU_FAILURE, summary="a GPU failed")
    await asyncio.wait_for(drain.wait_until_over(other), 5)


async def test_a_server_that_is_not_there_is_a_failure_and_after_a_while_nothing_to_wait_for(socket: Path) -> None:
    now = 0.0
    drain = Drain(AdminClient(str(socket)), {Kind.SPOT_INTERRUPTION}, 12.0, monotonic=lambda: now)
    with pytest.raises(ActionError, match="cannot be reached"):
        await drain.act(event(), moved=False)
    assert not drain.is_over(event())
    now += NOBODY_SERVES_SECONDS
    with pytest.raises(ActionError):
        await drain.act(event(), moved=False)
    await asyncio.wait_for(drain.wait_until_over(event()), 5)


@pytest.mark.parametrize("body", ["<html>", "{}", '{"state": "asleep"}'])
async def test_an_answer_that_is_none_is_a_failure(socket: Path, body: str, drain: Drain) -> None:
    from aiohttp import web

    class Wrong(AdminDouble):
        async def get(self, request: web.Request) -> web.Response:
            return web.Response(text=body)

    async with Wrong().serving(socket):
        with pytest.raises(ActionError, match="not understood"):
            await drain.act(event(), moved=False)
