"""Tells an engine that computes from one that is stuck, by the time that the server itself was there to notice."""

from __future__ import annotations

import time
from collections.abc import Callable

# A step that only decodes reads the weights once: well below a second, seconds on a machine that swaps or is crowded.
DECODE_STALL_SECONDS = 20.0
# Until each request has its first token a step may be a whole budget of prefill: 2048 tokens of a model of a billion
# parameters are 4e12 operations, 40 s for a slow processor.
PREFILL_STALL_SECONDS = 60.0
# Without work the loop answers a ping within a millisecond. Ten seconds leave room for one long step on behalf of
# another server that uses the same engine.
HEARTBEAT_STALL_SECONDS = 10.0
# The next step may take a few times as long as the longest lately, as the context grows, and that again on a machine
# that others use as well.
SLOWER_THAN_LATELY = 10
# ... but a step that hung once must not switch the watchdog off.
LONGEST_STALL_SECONDS = 300.0
# What counts as lately: long enough to have seen a prefill, short enough to forget a bad moment of the machine.
WINDOW_SECONDS = 300.0
# A tick that comes this much too late was not late for the engine's sake: the server was suspended, or busy itself.
LATEST_TICK = 2.0


class Watchdog:
    """Times of one engine, in seconds during which the server's loop ran.

    Time in which the server was suspended or blocked is left out: the engine's answers may lie unread in the socket
    then, and say nothing about the engine. So the loop has to call `tick` every `tick_seconds`.
    """

    def __init__(self, tick_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = LATEST_TICK * tick_seconds
        self._clock = clock
        self._ticked_at = clock()
        self._noticed = 0.0  # seconds up to the newest tick
        self.reset()

    def reset(self) -> None:
        """Another engine, or none: forget what was known of the last."""
        self._step_or_work_at = self._now()
        self._unanswered_at: float | None = None  # when the oldest ping without an answer was sent
        self._longest = [0.0, 0.0]  # between two steps: in this window, and in the one before
        self._window_at = self._now()

    def tick(self) -> None:
        self._noticed = self._now()
        self._ticked_at = self._clock()
        if self._noticed - self._window_at > WINDOW_SECONDS:
            self._longest = [0.0, self._longest[0]]
            self._window_at = self._noticed

    def pinged(self) -> None:
        if self._unanswered_at is None:
            self._unanswered_at = self._now()

    def work_began(self) -> None:
        self._step_or_work_at = self._now()

    def heard(self, *, stepped: bool, had_work: bool) -> None:
        """The engine's loop turned. `stepped`: it made steps since it was last heard."""
        now = self._now()
        if stepped:
            began = self._step_or_work_at if had_work else self._unanswered_at
            self._longest[0] = max(self._longest[0], 0.0 if began is None else now - began)
        if stepped or not had_work:
            self._step_or_work_at = now
        self._unanswered_at = None

    @property
    def step_age(self) -> float:
        """Since a step was last seen to end, or work began if that was later."""
        return self._now() - self._step_or_work_at

    @property
    def silence(self) -> float | None:
        """Since the oldest ping that has no answer yet; None when all are answered."""
        return None if self._unanswered_at is None else self._now() - self._unanswered_at

    def stalled(self, *, has_work: bool, prefilling: Callable[[], bool]) -> bool:
        """With work steps must happen, without it answers. `prefilling`: a request has no token yet."""
        age = self.step_age if has_work else self.silence or 0.0
        if age < min(DECODE_STALL_SECONDS, HEARTBEAT_STALL_SECONDS):
            return False
        limit = HEARTBEAT_STALL_SECONDS
        if has_work:
            limit = PREFILL_STALL_SECONDS if prefilling() else DECODE_STALL_SECONDS
        return age >= max(limit, min(SLOWER_THAN_LATELY * max(self._longest), LONGEST_STALL_SECONDS))

    def _now(self) -> float:
        return self._noticed + min(self._clock() - self._ticked_at, self._most)
