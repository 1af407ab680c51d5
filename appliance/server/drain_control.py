"""Whoever wants the server to drain says it here: signals, `pagebox drain`, the spot watcher."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Protocol

from appliance.lifecycle.drain_state import DrainState

log = logging.getLogger(__name__)

# After the deadline: what was ended then tells its clients. Whatever still runs after that is broken off.
GRACE_SECONDS = 2.0


class Draining(Protocol):
    """What drains: one server process or several."""

    def drain(self, deadline: float, *, final: bool) -> None:
        """Take only what can end before `deadline`, in `time.monotonic()` seconds; may be called again, to move it.

        `final`: the process ends afterwards. Inherited sockets are left to whoever listens at them next.
        """
        ...

    def cancel_drain(self) -> None: ...

    async def drained(self) -> None:
        """Returns when nothing runs any more."""
        ...


class DrainControl:
    """Owns the drain state, and has `what` act on it."""

    def __init__(self, what: Draining, timeout: float) -> None:
        """`timeout`: seconds, where nobody says a deadline, and at most after a signal."""
        self.state = DrainState()
        self._what = what
        self._timeout = timeout
        self._moved = asyncio.Event()
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def drain(self, deadline: float | None, reason: str) -> None:
        """Begin, or move the deadline of, a drain until `deadline`, in `time.monotonic()` seconds."""
        if self.state.drain(time.monotonic() + self._timeout if deadline is None else deadline, reason):
            self._act()

    def terminate(self, reason: str) -> None:
        """Drain, then end. The second call ends what still runs now."""
        self.state.terminate(time.monotonic(), self._timeout, reason)
        self._act()

    def cancel(self) -> None:
        """Serve again. Raises `DrainIsFinal`."""
        if not self.state.cancel():
            return
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._what.cancel_drain()
        log.info("The drain is cancelled: serving again")

    async def ended(self) -> None:
        """Returns when the process was told to end, and nothing runs any more."""
        await self._over.wait()

    def _act(self) -> None:
        state = self.state
        if state.state == "drained":
            if state.terminating:
                self._over.set()
            return
        assert state.deadline is not None
        seconds = max(0.0, state.deadline - time.monotonic())
        log.info("Draining for %.0f s (%s): only what can finish is taken", seconds, state.reason)
        self._what.drain(state.deadline, final=state.terminating)
        self._moved.set()
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="drain")

    async def _follow(self) -> None:
        drained = asyncio.create_task(self._what.drained())
        try:
            while not drained.done() and (left := self._seconds_left()) > 0.0:
                self._moved.clear()
                moved = asyncio.create_task(self._moved.wait())
                await asyncio.wait({drained, moved}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
        finally:
            drained.cancel()
        self.state.finish()
        log.info("Drained")
        if self.state.terminating:
            self._over.set()

    def _seconds_left(self) -> float:
        assert self.state.deadline is not None
        return self.state.deadline + GRACE_SECONDS - time.monotonic()
