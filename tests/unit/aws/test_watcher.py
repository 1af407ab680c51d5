"""From what monitors announce to what actions do: once, again after failures, and back when it is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.aws import watcher as module
from appliance.aws.actions.action import ActionError
from appliance.aws.events import Event, Kind
from appliance.aws.monitors.monitor import MonitorError
from appliance.aws.store import EventStore
from appliance.aws.watcher import Watcher
from appliance.aws.watcher_metrics import WatcherMetrics
from tests.support.eventually import eventually

REACTIONS = dict.fromkeys(Kind, ("drain", "deregister", "notify"))


class Source:
    name = "source"
    interval = 0.005
    can_end = True

    def __init__(self, *events: Event) -> None:
        self.events: Sequence[Event] = events
        self.error: Exception | None = None
        self.polls = 0

    async def poll(self) -> Sequence[Event]:
        self.polls += 1
        if self.error is not None:
            raise self.error
        return self.events


class Recorder:
    """An action."""

    def __init__(self, name: str, *, at_once: bool = False, repeats: bool = False, upheld: bool = False) -> None:
        self.name = name
        self.at_once = at_once
        self.repeats = repeats
        self.upheld = upheld
        self.failures = 0
        self.calls: list[tuple[str, bool]] = []
        self.undone: list[tuple[str, str]] = []

    async def act(self, event: Event, *, moved: bool) -> str:
        self.calls.append((event.summary, moved))
        if self.failures:
            self.failures -= 1
            raise ActionError("not now")
        if self.upheld:
            await asyncio.Event().wait()
        return f"memo of {self.name}"

    async def undo(self, event: Event, memo: str) -> None:
        if self.failures:
            self.failures -= 1
            raise ActionError("not now")
        self.undone.append((event.summary, memo))


class World:
    """A watcher with recorders for actions, which can be restarted and rebooted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.boot = "boot-1"
        self.now = datetime(2026, 11, 24, 10, tzinfo=UTC)
        self.source = Source()
        self.watcher: Watcher | None = None
        self.new_actions()

    def new_actions(self) -> None:
        self.drain = Recorder("drain", repeats=True, upheld=True)
        self.deregister = Recorder("deregister")
        self.notify = Recorder("notify", at_once=True, repeats=True)

    def start(self, *, with_actions: bool = True) -> None:
        self.metrics = WatcherMetrics()
        self.store = EventStore(self.folder / "events.json", self.boot, lambda: self.now)
        self.metrics.show_records(lambda: self.store.records)
        self.watcher = Watcher(self.store, REACTIONS, self.metrics, lambda: self.now)  # type: ignore[arg-type]
        self.watcher.add([self.source], self.actions() if with_actions else {})  # type: ignore[arg-type]

    def actions(self) -> dict[str, list[Recorder]]:
        return {"drain": [self.drain], "deregister": [self.deregister], "notify": [self.notify]}

    async def restart(self, boot: str = "boot-1") -> None:
        await self.stop()
        self.boot = boot
        self.new_actions()
        self.start()

    async def stop(self) -> None:
        if self.watcher is not None:
            await self.watcher.close()

    async def settle(self) -> None:
        """Long enough for anything that is going to happen."""
        polls = self.source.polls
        await eventually(lambda: self.source.polls > polls + 5)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "_CLOCK_SECONDS", 0.005)
    world = World(tmp_path)
    yield world
    await world.stop()


def event(summary: str = "it goes", *, identity: str = "a", act_from: datetime | None = None, **more: bool) -> Event:
    return Event(identity=identity, kind=Kind.SCHEDULED_MAINTENANCE, summary=summary, act_from=act_from, **more)


def done(*recorders: Recorder) -> Callable[[], bool]:
    return lambda: all(recorder.calls for recorder in recorders)


async def test_an_event_is_acted_on_once(world: World) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.drain, world.deregister, world.notify))
    await world.settle()
    for recorder in (world.drain, world.deregister, world.notify):
        assert recorder.calls == [("it goes", False)]


async def test_after_a_restart_only_what_is_upheld_is_done_again(world: World) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.drain, world.deregister, world.notify))
    await world.settle()
    await world.restart()
    await eventually(done(world.drain))
    await world.settle()
    assert (world.deregister.calls, world.notify.calls) == ([], [])


async def test_what_fails_is_tried_until_it_works(world: World) -> None:
    world.deregister.failures = 5
    world.source.events = [event()]
    world.start()
    await eventually(lambda: len(world.deregister.calls) == 6)
    await world.settle()
    assert len(world.deregister.calls) == 6
    text = world.metrics.exposition().decode()
    assert 'pagebox:watcher_actions_total{action="deregister",outcome="failed"} 5.0' in text
    assert 'pagebox:watcher_actions_total{action="deregister",outcome="done"} 1.0' in text


async def test_one_action_that_fails_delays_no_other(world: World) -> None:
    world.drain.failures = 1_000_000
    world.source.events = [event()]
    world.start()
    await eventually(done(world.deregister, world.notify))


async def test_an_event_that_moves_is_told_and_drained_for_again_and_not_deregistered_again(world: World) -> None:
    world.source.events = [event("at ten")]
    world.start()
    await eventually(done(world.drain, world.deregister, world.notify))
    world.source.events = [event("at eleven")]
    await eventually(lambda: len(world.notify.calls) == 2 and len(world.drain.calls) == 2)
    assert world.drain.calls[-1] == ("at eleven", True)
    assert world.notify.calls[-1] == ("at eleven", True)
    assert len(world.deregister.calls) == 1


async def test_what_was_done_for_an_event_that_is_over_is_undone(world: World) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.drain, world.deregister, world.notify))
    await world.settle()
    world.source.events = []
    await eventually(lambda: world.drain.undone and world.deregister.undone and world.notify.undone)
    assert world.deregister.undone == [("it goes", "memo of deregister")]
    assert world.drain.undone == [("it goes", "")]


async def test_undoing_is_tried_again_too_and_knows_after_a_restart_what_was_done(world: World) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.deregister))
    await world.settle()
    await world.restart()
    world.deregister.failures = 3
    world.source.events = []
    await eventually(lambda: world.deregister.undone)
    assert world.deregister.undone == [("it goes", "memo of deregister")]


async def test_an_event_that_comes_again_is_acted_on_again(world: World) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.deregister))
    world.source.events = []
    await eventually(lambda: world.deregister.undone)
    world.source.events = [event("once more")]
    await eventually(lambda: len(world.deregister.calls) == 2)
    assert world.deregister.calls[-1] == ("once more", False)


@pytest.mark.parametrize("error", [MonitorError("garbage"), RuntimeError("a bug")])
async def test_a_source_that_fails_changes_nothing_and_goes_on(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world.source.events = [event()]
    world.start()
    await eventually(done(world.drain))
    world.source.error = error
    polls = world.source.polls
    await eventually(lambda: world.source.polls > polls + 20)
    assert world.drain.undone == []
    assert len([line for line in caplog.messages if str(error) in line]) == 1, "one line, not one for each look"
    world.source.error, world.source.events = None, []
    await eventually(lambda: world.drain.undone)


async def test_what_is_for_later_is_told_now_and_done_then(world: World) -> None:
    world.source.events = [event(act_from=world.now + timedelta(days=3))]
    world.start()
    await eventually(done(world.notify))
    await world.settle()
    assert world.drain.calls == world.deregister.calls == []
    world.now += timedelta(days=3)
    await eventually(done(world.drain, world.deregister))


async def test_what_is_put_off_after_all_is_taken_back_until_then(world: World) -> None:
    world.source.events = [event(act_from=world.now)]
    world.start()
    await eventually(done(world.drain, world.deregister))
    world.source.events = [event("later", act_from=world.now + timedelta(days=1))]
    await eventually(lambda: world.drain.undone and world.deregister.undone)
    await world.settle()
    assert len(world.drain.calls) == 1
    world.now += timedelta(days=1)
    await eventually(lambda: len(world.drain.calls) == 2 and len(world.deregister.calls) == 2)


async def test_after_the_reboot_that_was_announced_the_machine_serves(world: World) -> None:
    world.source.events = [event(outlives_boot=True)]
    world.start()
    await eventually(done(world.drain))
    await world.restart("boot-2")
    await world.settle()
    assert world.drain.calls == world.deregister.calls == world.notify.calls == []


async def test_another_reboot_before_the_one_that_was_announced_changes_nothing(world: World) -> None:
    world.source.events = [event(outlives_boot=True, act_from=world.now + timedelta(hours=1))]
    world.start()
    await eventually(done(world.notify))
    await world.restart("boot-2")
    world.now += timedelta(hours=1)
    await eventually(done(world.drain))


async def test_actions_that_can_be_had_later_act_on_what_was_announced_before(world: World) -> None:
    world.source.events = [event()]
    world.start(with_actions=False)
    await eventually(lambda: world.store.records)
    assert world.watcher is not None
    world.watcher.add([], world.actions())  # type: ignore[arg-type]
    await eventually(done(world.drain, world.deregister, world.notify))


async def test_the_metrics_say_what_holds(world: World) -> None:
    deadline = world.now + timedelta(seconds=90)
    world.source.events = [Event(identity="s", kind=Kind.SPOT_INTERRUPTION, summary="it goes", deadline=deadline)]
    world.start()
    await eventually(lambda: world.store.records)
    text = world.metrics.exposition().decode()
    assert "pagebox:spot_notice 1.0" in text
    assert 'pagebox:watcher_events_total{kind="spot-interruption"} 1.0' in text
    assert 'pagebox:watcher_events_holding{kind="gpu-failure"} 0.0' in text
    [line] = [line for line in text.splitlines() if line.startswith("pagebox:watcher_deadline_timestamp_seconds{")]
    assert float(line.split()[-1]) == deadline.timestamp()
