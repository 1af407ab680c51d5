"""One step after another: schedule, execute, update. Knows nothing of sockets, processes or torch."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from appliance.engine.drain import EngineDrain
from appliance.engine.request import RequestError
from appliance.engine.scheduler import Scheduler
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.wire import AddRequest, SchedulerStats, TokenDelta, TraceEvent

log = logging.getLogger(__name__)

# A step that raises costs the requests in it. After this many in a row it is the device or the code that is broken,
# and only a new process can help.
MAX_CONSECUTIVE_FAILURES = 3


class Executor(Protocol):
    """Runs the model on steps, in the order in which they are submitted."""

    depth: int  # steps that may be under way at once: 1 where a step is synchronous, 2 where the device works by itself

    def submit(self, step: SchedulerOutput, /) -> Callable[[], ModelOutput]:
        """Start a step; calling the result waits for its outcome. Either raises when the step as a whole failed;
        `ModelOutput.errors` is for single rows."""
        ...


@dataclass(frozen=True, slots=True)
class _UnderWay:
    step: SchedulerOutput
    outcome: Callable[[], ModelOutput]
    began: float  # time.monotonic()


class EngineCore:
    """The engine as a plain object: requests in, token deltas out, one `step` at a time, in the caller's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        on_trace: Callable[[TraceEvent], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_trace` gets the time of each step while traced requests live; the scheduler reports its own events."""
        self._scheduler = scheduler
        self._executor = executor
        self._on_trace = on_trace
        self._clock = clock
        self._drain = EngineDrain(scheduler, clock)
        self._traced: set[str] = set()
        self._under_way: deque[_UnderWay] = deque()
        self._failures = 0
        self.fatal_error: str | None = None  # a sentence, once no further step can succeed

    def add(self, request: AddRequest) -> TokenDelta | None:
        """Queue a sequence. The delta, if any, says why it can never run."""
        try:
            self._scheduler.add_request(request)
        except RequestError as error:
            return TokenDelta(request.request_id, [], finish_reason="error", error=str(error))
        if request.trace and self._on_trace is not None:
            self._traced.add(request.request_id)
        return None

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests and free what they hold; no delta follows. Unknown ids are ignored."""
        for request_id in request_ids:
            self._scheduler.abort(request_id)
        self._traced.difference_update(request_ids)

    def has_work(self) -> bool:
        return self._scheduler.has_work() or bool(self._under_way)

    def drain(self, deadline: float | None) -> None:
        """Go on only with what can end before `deadline`, in seconds of the clock; None: with everything."""
        self._drain.set_deadline(deadline)

    def stats(self) -> SchedulerStats:
        stats, outlook = self._scheduler.stats(), self._drain.outlook()
        return stats if outlook is None else msgspec.structs.replace(stats, drain=outlook)

    def reset_prefix_cache(self) -> None:
        self._scheduler.reset_prefix_cache()

    def step(self) -> list[TokenDelta]:
        """Start one forward pass, and take in the oldest one under way once there are `depth` of them.

        Returns what that one added to each request. A step that raises ends its requests with finish reason "error".
        The third in a row sets `fatal_error`. While the engine drains, those that it sheds end with "shed".
        """
        shed = self._drain.due()
        self.abort(shed)
        return [TokenDelta(request_id, [], finish_reason="shed") for request_id in shed] + self._advance()

    def _advance(self) -> list[TokenDelta]:
        step = self._scheduler.schedule()
        if step is not None:
            began = self._clock()
            try:
                self._under_way.append(_UnderWay(step, self._executor.submit(step), began))
            except Exception as error:
                return self._forget_finished(self._fail(step, error))
        if not self._under_way or (step is not None and len(self._under_way) < self._executor.depth):
            return []
        return self._forget_finished(self._take_in(self._under_way.popleft()))

    def _take_in(self, under_way: _UnderWay) -> list[TokenDelta]:
        try:
            output = under_way.outcome()
        except Exception as error:
            return self._fail(under_way.step, error)
        self._failures = 0
        self._drain.step_ended(under_way.step, under_way.began)
        if self._traced:
            self._trace(under_way.step, self._clock() - under_way.began)
        return self._scheduler.update(under_way.step, output)

    def _fail(self, step: SchedulerOutput, error: Exception) -> list[TokenDelta]:
        self._failures += 1
        log.error("Step %d with %d requests failed", step.step, len(step.rows), exc_info=error)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            self.fatal_error = f"{self._failures} steps in a row failed, the last one with {reason}"
        return self._scheduler.fail_step(step, f"The engine failed while it computed this request ({reason})")

    def _trace(self, step: SchedulerOutput, seconds: float) -> None:
        """Tell every traced request of the step that just ran, its own tokens in it or not."""
        assert self._on_trace is not None
        for request_id in self._traced:
            fields: dict[str, int | float | str | list[int]] = {
                "step": step.step,
                "tokens": step.total_tokens,
                "requests": len(step.rows),
                "milliseconds": round(seconds * 1000, 3),
            }
            self._on_trace(TraceEvent(request_id, time.time(), "step", fields))

    def _forget_finished(self, deltas: list[TokenDelta]) -> list[TokenDelta]:
        if self._traced:
            self._traced.difference_update(delta.request_id for delta in deltas if delta.finish_reason is not None)
        return deltas
