"""How long requests may take: each by the setting request-timeout, all together once the server drains."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from appliance.server.errors import ApiError, unavailable


class TimeLimits:
    """Knows every request that generates, and ends those that take too long. Deadlines are `time.monotonic()`."""

    def __init__(self, request_seconds: float) -> None:
        self._request_seconds = request_seconds  # 0: no limit
        self._running: set[asyncio.Timeout] = set()
        self._drain_deadline: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def limit(self, started: float) -> AsyncIterator[None]:
        """Raises an `ApiError` in the block when a request that began at `started` runs out of time."""
        deadlines = [started + self._request_seconds] if self._request_seconds else []
        if self._drain_deadline is not None:
            deadlines.append(self._drain_deadline)
        timeout = asyncio.timeout_at(_loop_time(min(deadlines)) if deadlines else None)
        self._running.add(timeout)
        self._idle.clear()
        try:
            async with timeout:
                yield
        except TimeoutError:
            if not timeout.expired():
                raise
            raise self._out_of_time(started) from None
        finally:
            self._running.discard(timeout)
            if not self._running:
                self._idle.set()

    async def drain(self, deadline: float) -> None:
        """Returns when nothing runs any more; what still runs at `deadline` is ended."""
        self._drain_deadline = deadline
        at = _loop_time(deadline)
        for timeout in self._running:
            when = timeout.when()
            timeout.reschedule(at if when is None else min(at, when))
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
        return unavailable("The server is shutting down; send the request again.", "shutting_down")


def _loop_time(monotonic: float) -> float:
    """asyncio's own clock, whichever loop runs."""
    return asyncio.get_running_loop().time() + monotonic - time.monotonic()
