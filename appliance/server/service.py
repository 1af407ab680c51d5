"""What the service manager is told of the server: that it is up, what it does, that it is going."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from appliance.lifecycle.sd_notify import ServiceManager

STATUS_SECONDS = 2.0
TIMES_PER_WATCHDOG = 3  # at least twice as often as it asks for (sd_watchdog_enabled(3))
# After drain-timeout: the last errors are sent and connections are closed.
GOING_SECONDS = 20.0


class Service:
    """Speaks to the manager from the server's own event loop, so that a loop that hangs is silent."""

    def __init__(self, manager: ServiceManager, describe: Callable[[], str]) -> None:
        """`describe`: what the server does, in one line."""
        self._manager = manager
        self._describe = describe
        self._task: asyncio.Task[None] | None = None

    def is_up(self) -> None:
        """Connections are accepted."""
        self._manager.ready(self._describe())
        if self._manager.is_there:
            self._task = asyncio.create_task(self._keep_telling(), name="service-status")

    def reload(self, work: Callable[[], None]) -> None:
        """Do `work`, which reads something again."""
        self._manager.reloading()
        work()
        self._manager.ready(self._describe())

    def is_draining(self, seconds: float) -> None:
        """It ends after `seconds` at the latest."""
        self._manager.stopping(self._describe())
        self._manager.extend_timeout(seconds + GOING_SECONDS)

    def is_gone(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _keep_telling(self) -> None:
        watchdog = self._manager.watchdog_seconds
        pause = STATUS_SECONDS if watchdog is None else min(STATUS_SECONDS, watchdog / TIMES_PER_WATCHDOG)
        said = ""
        while True:
            self._manager.watchdog()
            if self._describe() != said:
                said = self._describe()
                self._manager.status(said)
            await asyncio.sleep(pause)
