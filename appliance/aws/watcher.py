"""Looks at every source, and sees that what is announced is acted on: once, until it is done, while it holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial

from appliance.aws.actions.action import Action, ActionError
from appliance.aws.events import Event, Kind
from appliance.aws.imds import ImdsError
from appliance.aws.monitors.monitor import Monitor, MonitorError
from appliance.aws.store import Changes, EventStore, Record
from appliance.aws.watcher_metrics import WatcherMetrics
from appliance.config.groups.watcher import Reaction

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 10.0  # of the two minutes that a spot notice leaves
UNDO_TRIES = 8
_CLOCK_SECONDS = 60.0  # waiting for a moment looks at the clock that often: it may be set meanwhile

_Key = tuple[str, str]  # an event's identity and an action's name


class Watcher:
    """Monitors and actions come when they can be had, by `add`: those of the cloud later than those of the GPUs."""

    def __init__(
        self,
        store: EventStore,
        reactions: Mapping[Kind, Sequence[Reaction]],
        metrics: WatcherMetrics,
        now: Callable[[], datetime],
    ) -> None:
        """`reactions` are the settings `on-…`."""
        self._store = store
        self._reactions = reactions
        self._metrics = metrics
        self._now = now
        self._actions: dict[Reaction, list[Action]] = {}
        self._looking: list[asyncio.Task[None]] = []
        self._doing: dict[_Key, asyncio.Task[None]] = {}
        self._undoing: set[asyncio.Task[None]] = set()
        self._problems: dict[str, str] = {}

    def add(self, monitors: Iterable[Monitor], actions: Mapping[Reaction, Sequence[Action]]) -> None:
        """Watch more, and do more. The new actions are for what was announced before too, even to an earlier run of
        this program."""
        for word, several in actions.items():
            self._actions.setdefault(word, []).extend(several)
        for record in self._store.records:
            self._begin(record)
        self._looking += [asyncio.create_task(self._watch(monitor)) for monitor in monitors]

    async def close(self) -> None:
        """Stop looking and doing; what was done stays done."""
        tasks = [*self._looking, *self._doing.values(), *self._undoing]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- looking ---------------------------------------------------------------------------------------------------

    async def _watch(self, monitor: Monitor) -> None:
        while True:
            try:
                events = await monitor.poll()
            except (MonitorError, ImdsError) as error:
                self._failed(monitor, str(error))
            except Exception as error:  # a watcher that ends because of one odd answer sees no further notice
                log.debug("The monitor %s failed", monitor.name, exc_info=True)
                self._failed(monitor, f"unexpected {type(error).__name__}: {error}")
            else:
                self._metrics.looked(monitor.name)
                if self._problems.pop(monitor.name, ""):
                    log.info("%s: can be watched again", monitor.name)
                self._react(self._store.update(monitor.name, events, can_end=monitor.can_end))
            await asyncio.sleep(monitor.interval)

    def _failed(self, monitor: Monitor, problem: str) -> None:
        self._metrics.look_failed(monitor.name)
        if self._problems.get(monitor.name) != problem:
            self._problems[monitor.name] = problem
            log.warning("%s: %s", monitor.name, problem)

    # ---- doing -----------------------------------------------------------------------------------------------------

    def _react(self, changes: Changes) -> None:
        for record in changes.new:
            log.warning("%s: %s", record.event.kind, record.event.summary)
            self._metrics.announced(record.event.kind)
            self._begin(record)
        for record in changes.moved:
            log.warning("%s has moved: %s", record.event.kind, record.event.summary)
            self._move(record)
        for record in changes.ended:
            log.warning("%s is over: %s", record.event.kind, record.event.summary)
            self._take_back(record, self._actions_for(record.event))

    def _actions_for(self, event: Event) -> list[Action]:
        return [action for word in self._reactions[event.kind] for action in self._actions.get(word, ())]

    def _begin(self, record: Record, *, moved: bool = False) -> None:
        """Start every action that is neither done nor under way."""
        if self._store.is_past(record):
            return
        for action in self._actions_for(record.event):
            earlier = self._doing.get((record.event.identity, action.name))
            if action.name not in record.done and (earlier is None or earlier.done()):
                self._start(record, action, partial(self._carry_out, record, action, moved))

    def _move(self, record: Record) -> None:
        if self._store.is_past(record):
            return
        event, actions = record.event, self._actions_for(record.event)
        later = event.act_from is not None and event.act_from > self._now()
        if later and record.acting_boot:  # acted on too early, as it turns out
            self._take_back(record, [action for action in actions if not action.at_once])
        self._store.mark_undone(record, [action.name for action in actions if action.repeats])
        for action in actions:
            if action.name not in record.done:
                self._start(record, action, partial(self._carry_out, record, action, True))

    def _take_back(self, record: Record, actions: Iterable[Action]) -> None:
        several = list(actions)
        memos = {action.name: record.done.get(action.name, "") for action in several}
        self._store.mark_undone(record, memos)
        for action in several:
            self._start(record, action, partial(self._undo, record.event, action, memos[action.name]))
            task = self._doing[record.event.identity, action.name]
            self._undoing.add(task)
            task.add_done_callback(self._undoing.discard)

    def _start(self, record: Record, action: Action, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """In place of what this action was doing about this event; what it was undoing it finishes first."""
        key = record.event.identity, action.name
        earlier = self._doing.get(key)

        async def replace() -> None:
            if earlier is not None:
                if earlier not in self._undoing:
                    earlier.cancel()
                await asyncio.wait([earlier])
            await work()

        self._doing[key] = asyncio.create_task(replace())

    async def _carry_out(self, record: Record, action: Action, moved: bool) -> None:
        if not action.at_once:
            await self._until(record.event.act_from)
            self._store.mark_acting(record)
        pause, problem = FIRST_PAUSE_SECONDS, ""
        while True:
            try:
                memo = await action.act(record.event, moved=moved)
            except Exception as error:
                problem = self._action_failed(action, error, problem)
            else:
                self._metrics.acted(action.name)
                self._store.mark_done(record, action.name, memo)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _undo(self, event: Event, action: Action, memo: str) -> None:
        pause, problem = FIRST_PAUSE_SECONDS, ""
        for _ in range(UNDO_TRIES):
            try:
                await action.undo(event, memo)
                return
            except Exception as error:
                problem = self._action_failed(action, error, problem)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        log.error("%s could not be taken back after %s was over", action.name, event.kind)

    def _action_failed(self, action: Action, error: Exception, before: str) -> str:
        """Logs a problem when it is another one than before; returns it."""
        self._metrics.act_failed(action.name)
        expected = isinstance(error, ActionError)
        problem = str(error) if expected else f"unexpected {type(error).__name__}: {error}"
        if problem != before:
            log.warning("%s did not work and is tried again: %s", action.name, problem)
            log.debug("How %s failed", action.name, exc_info=not expected)
        return problem

    async def _until(self, moment: datetime | None) -> None:
        while moment is not None and (left := (moment - self._now()).total_seconds()) > 0:  # noqa: ASYNC110 (a clock)
            await asyncio.sleep(min(left, _CLOCK_SECONDS))
