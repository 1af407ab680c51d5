"""How long requests may take: each by the setting request-timeout, all together once the server drains."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appliance.server.draining import refused
from appliance.server.errors import ApiError


class TimeLimits:
    """Knows every request that generates, and ends those that take too long. Deadlines are `time.monotonic()`."""

    def __init__(self, request_seconds: float) -> None:
        self._request_seconds = request_seconds  # 0: no limit
        self._running: dict[asyncio.Timeout, float] = {}  # and what each may take without a drain
        self._drain_deadline: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def limit(self, started: float) -> AsyncIterator[None]:
        """Raises an `ApiError` in the block when a request that began at `started` runs out of time."""
        own = started + self._request_seconds if self._request_seconds else math.inf
        timeout = asyncio.timeout_at(self._at(own))
        self._idle.clear()
        try:
            async with timeout:
                self._running[timeout] = own
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._out_of_time(started) from None
        finally:
            self._running.pop(timeout, None)
            if not self._running:
                self._idle.set()

    def drain(self, deadline: float | None) -> None:
        """What still runs at `deadline` is ended, also if another was set before; None: nothing is any more."""
        self._drain_deadline = deadline
        for timeout, own in self._running.items():
            if not timeout.expired():
                timeout.reschedule(self._at(own))

    async def idle(self) -> None:
        """Returns when nothing runs."""
        await self._idle.wait()

    @property
    def drain_seconds_left(self) -> float | None:
        """Until what still runs is ended, never negative; None while the server serves."""
        return None if self._drain_deadline is None else max(0.0, self._drain_deadline - time.monotonic())

    def _out_of_time(self, started: float) -> ApiError:
        if self._request_seconds and time.monotonic() >= started + self._request_seconds:
            return ApiError(
                504,
                f"The request took longer than the {self._request_seconds:g} s that request-timeout allows.",
                code="timeout",
                outcome="timeout",
            )
        return refused("This server is about to end, and the request could not finish.")

    def _at(self, own: float) -> float | None:
        """When a request ends that may take until `own`, by the clock of the loop."""
        deadline = own if self._drain_deadline is None else min(own, self._drain_deadline)
        return None if deadline == math.inf else _loop_time(deadline)


def _loop_time(monotonic: float) -> float:
    """asyncio's own clock, whichever loop runs."""
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
