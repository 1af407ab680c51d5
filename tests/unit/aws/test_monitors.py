"""Each monitor: what it makes of what AWS documents, of nothing, and of garbage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec
import pytest

from appliance.aws.events import Event, Kind
from appliance.aws.imds import Imds
from appliance.aws.monitors.auto_scaling_state import AutoScalingStateMonitor
from appliance.aws.monitors.maintenance import MaintenanceMonitor
from appliance.aws.monitors.monitor import Monitor, MonitorError
from appliance.aws.monitors.rebalance import RebalanceMonitor
from appliance.aws.monitors.spot_interruption import SpotInterruptionMonitor
from tests.support.imds_double import INSTANCE_ID, LIFECYCLE, MAINTENANCE, REBALANCE, SPOT, ImdsDouble

MONITORS: dict[str, Callable[[Imds], Monitor]] = {
    SPOT: lambda imds: SpotInterruptionMonitor(imds, INSTANCE_ID),
    REBALANCE: lambda imds: RebalanceMonitor(imds, INSTANCE_ID),
    MAINTENANCE: lambda imds: MaintenanceMonitor(imds, lead_time=300),
    LIFECYCLE: lambda imds: AutoScalingStateMonitor(imds, INSTANCE_ID),
}


@pytest.fixture
async def service() -> AsyncIterator[ImdsDouble]:
    async with ImdsDouble().serving() as double:
        yield double


@pytest.fixture
async def imds(service: ImdsDouble) -> AsyncIterator[Imds]:
    async with aiohttp.ClientSession() as session:
        yield Imds(session, service.url)


def at(hour: int, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2026, 11, 24, hour, minute, second, tzinfo=UTC)


def scheduled(**changes: str) -> dict[str, str]:
    return {
        "Code": "system-reboot",
        "Description": "scheduled reboot",
        "EventId": "instance-event-0d59937288b749b32",
        "NotAfter": "24 Nov 2026 12:00:00 GMT",
        "NotBefore": "24 Nov 2026 10:00:43 GMT",
        "State": "active",
    } | changes


def as_json(*entries: dict[str, str]) -> str:
    return msgspec.json.encode(entries).decode()


@pytest.mark.parametrize("path", MONITORS)
async def test_there_being_none_is_no_event(imds: Imds, path: str) -> None:
    assert list(await MONITORS[path](imds).poll()) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (SPOT, "<html>"),
        (SPOT, ""),
        (SPOT, "[]"),
        (SPOT, '{"action": "terminate"}'),
        (SPOT, '{"action": "terminate", "time": "soon"}'),
        (SPOT, '{"action": "terminate", "time": "2026-11-24T10:00:00"}'),
        (SPOT, '{"action": 5, "time": "2026-11-24T10:00:00Z"}'),
        (REBALANCE, "{}"),
        (REBALANCE, '{"noticeTime": 12}'),
        (MAINTENANCE, "{}"),
        (MAINTENANCE, '[{"Code": "system-reboot"}]'),
        (MAINTENANCE, as_json(scheduled(NotBefore="2026-11-24T10:00:00Z"))),
        (MAINTENANCE, as_json(scheduled(NotAfter="later"))),
        (LIFECYCLE, "<html>"),
    ],
)
async def test_garbage_is_an_error_and_never_no_event(imds: Imds, service: ImdsDouble, path: str, text: str) -> None:
    """No event would mean that a notice is withdrawn."""
    service.values[path] = text
    with pytest.raises(MonitorError):
        await MONITORS[path](imds).poll()


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
async def test_a_spot_notice_has_the_moment_at_which_the_machine_goes(
    imds: Imds, service: ImdsDouble, action: str
) -> None:
    service.values[SPOT] = f'{{"action": "{action}", "time": "2026-11-24T10:02:00Z"}}'
    [event] = await MONITORS[SPOT](imds).poll()
    assert (event.kind, event.deadline, event.act_from) == (Kind.SPOT_INTERRUPTION, at(10, 2), None)
    assert action in event.summary and "2026-11-24T10:02:00Z" in event.summary


async def test_a_spot_notice_that_moves_is_the_same_event(imds: Imds, service: ImdsDouble) -> None:
    events: list[Event] = []
    for minute in (2, 3):
        service.values[SPOT] = f'{{"action": "terminate", "time": "2026-11-24T10:0{minute}:00Z"}}'
        events += await MONITORS[SPOT](imds).poll()
    assert events[0].identity == events[1].identity
    assert events[0].deadline != events[1].deadline


async def test_a_second_rebalance_recommendation_is_another_event(imds: Imds, service: ImdsDouble) -> None:
    identities = []
    for time in ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z", "2026-11-24T11:00:00Z"):
        service.values[REBALANCE] = f'{{"noticeTime": "{time}"}}'
        identities += [event.identity for event in await MONITORS[REBALANCE](imds).poll()]
    assert identities[0] == identities[1] != identities[2]


async def test_a_reboot_is_acted_on_shortly_before_it_and_survives_it(imds: Imds, service: ImdsDouble) -> None:
    service.values[MAINTENANCE] = as_json(scheduled())
    [event] = await MONITORS[MAINTENANCE](imds).poll()
    assert event.deadline == at(10, 0, 43)
    assert event.act_from == at(10, 0, 43) - timedelta(seconds=300)
    assert event.outlives_boot


@pytest.mark.parametrize("code", ["instance-retirement", "instance-stop"])
async def test_a_retirement_is_acted_on_at_once(imds: Imds, service: ImdsDouble, code: str) -> None:
    entry = scheduled(Code=code)
    del entry["NotAfter"]
    service.values[MAINTENANCE] = as_json(entry)
    [event] = await MONITORS[MAINTENANCE](imds).poll()
    assert (event.deadline, event.act_from, event.outlives_boot) == (None, None, False)


async def test_maintenance_that_is_over_or_cancelled_is_no_event(imds: Imds, service: ImdsDouble) -> None:
    service.values[MAINTENANCE] = as_json(scheduled(State="completed"), scheduled(State="canceled"))
    assert list(await MONITORS[MAINTENANCE](imds).poll()) == []


@pytest.mark.parametrize("text", ["[]", "", "\n"])
async def test_an_empty_list_of_maintenance_is_no_event(imds: Imds, service: ImdsDouble, text: str) -> None:
    service.values[MAINTENANCE] = text
    assert list(await MONITORS[MAINTENANCE](imds).poll()) == []


@pytest.mark.parametrize("state", ["InService", "Standby", "Warmed:Terminated", "", "Detached"])
async def test_other_lifecycle_states_are_no_event(imds: Imds, service: ImdsDouble, state: str) -> None:
    service.values[LIFECYCLE] = state
    assert list(await MONITORS[LIFECYCLE](imds).poll()) == []


@pytest.mark.parametrize("text", ["Terminated", "Terminated\n"])
async def test_the_target_state_terminated_is_an_event(imds: Imds, service: ImdsDouble, text: str) -> None:
    service.values[LIFECYCLE] = text
    [event] = await MONITORS[LIFECYCLE](imds).poll()
    assert event.kind == Kind.AUTO_SCALING_TERMINATION
