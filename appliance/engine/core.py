"""One step after another: schedule, execute, update. Knows nothing of sockets, processes or torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.engine.request import RequestError
from appliance.engine.scheduler import Scheduler
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.wire import AddRequest, SchedulerStats, TokenDelta, TraceEvent

log = logging.getLogger(__name__)

# A step that raises costs the requests in it. After this many in a row it is the device or the code that is broken,
# and only a new process can help.
MAX_CONSECUTIVE_FAILURES = 3


class Executor(Protocol):
    """Runs the model on one step. Raises when the step as a whole failed; `ModelOutput.errors` is for single rows."""

    def execute(self, step: SchedulerOutput, /) -> ModelOutput: ...


class EngineCore:
    """The engine as a plain object: requests in, token deltas out, one `step` at a time, in the caller's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        on_trace: Callable[[TraceEvent], None] | None = None,
    ) -> None:
        """`on_trace` gets the time of each step while traced requests live; the scheduler reports its own events."""
        self._scheduler = scheduler
        self._executor = executor
        self._on_trace = on_trace
        self._traced: set[str] = set()
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
        return self._scheduler.has_work()

    def stats(self) -> SchedulerStats:
        return self._scheduler.stats()

    def reset_prefix_cache(self) -> None:
        self._scheduler.reset_prefix_cache()

    def step(self) -> list[TokenDelta]:
        """One forward pass, and what it added to each request; empty when nothing can be scheduled.

        A step that raises ends its requests with finish reason "error". The third in a row sets `fatal_error`.
        """
        step = self._scheduler.schedule()
        if step is None:
            return []
        began = time.perf_counter()
        try:
            output = self._executor.execute(step)
        except Exception as error:
            return self._forget_finished(self._fail(step, error))
        self._failures = 0
        if self._traced:
            self._trace(step, time.perf_counter() - began)
        return self._forget_finished(self._scheduler.update(step, output))

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
