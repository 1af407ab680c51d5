"""Feeds systemd's watchdog from the engine's own loop, and shows it the load."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from appliance.lifecycle.sd_notify import ServiceManager
from appliance.protocol.wire import SchedulerStats

# A service shall tell of itself at least twice as often as its watchdog asks for (sd_watchdog_enabled(3)); once more,
# as a step may be under way when it is time.
TIMES_PER_WATCHDOG = 4
STATUS_SECONDS = 5.0  # where there is no watchdog


class Steps(Protocol):
    """What is looked at: an engine core."""

    def has_work(self) -> bool: ...

    def stats(self) -> SchedulerStats: ...


class Liveness:
    """Tells the service manager that the engine is idle or that its steps move, whichever is true, and nothing else.

    No thread and no timer does it: they would go on while the loop hangs in a kernel.
    """

    def __init__(self, manager: ServiceManager, clock: Callable[[], float] = time.monotonic) -> None:
        self._manager = manager
        self._clock = clock
        self._steps = -1  # when the watchdog was last fed
        self._due = clock()
        seconds = manager.watchdog_seconds
        self._every = STATUS_SECONDS if seconds is None else seconds / TIMES_PER_WATCHDOG

    @property
    def interval(self) -> float | None:
        """Seconds after which `turned` wants to be called again, also by an idle loop; None: it need not be."""
        return self._every if self._manager.is_there else None

    def turned(self, core: Steps) -> None:
        """The loop has turned once more."""
        if not self._manager.is_there or self._clock() < self._due:
            return
        stats = core.stats()
        if core.has_work() and stats.steps == self._steps:
            return
        self._steps = stats.steps
        self._due = self._clock() + self._every
        self._manager.watchdog()
        self._manager.status(load(stats))


def load(stats: SchedulerStats) -> str:
    """One line for people."""
    if not stats.num_running and not stats.num_waiting:
        return "Ready, idle"
    return (
        f"Ready: {stats.num_running} running, {stats.num_waiting} waiting, "
        f"KV cache {stats.kv_cache_usage:.0%} in use, {stats.steps} steps so far"
    )
