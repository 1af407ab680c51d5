"""One step after another: schedule, execute, update. Knows nothing of sockets, processes or torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

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
        """`on_trace` gets the time and tokens of each step of traced requests; the scheduler reports its own events."""
        self._scheduler = scheduler
        self._executor = executor
        self._on_trace = on_trace
        self._traced: set[str] = set()
        self._failures = 0
        self.fatal_error: str | None = None  # a sentence, once no further step can succeed

    def add(self, request: AddRequest) -> TokenDelta | None:
        """Queue a sequence. The delta, if any, says why it can never run."""
        refusal = self._scheduler.add(request)
        if refusal is None and request.trace and self._on_trace is not None:
            self._traced.add(request.request_id)
        return refusal

    def abort(self, request_ids: Sequence[str]) -> None:
        """Forget requests and free what they hold; no delta follows. Unknown ids are ignored."""
        self._scheduler.abort(request_ids)
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
            return self._fail(step, error)
        self._failures = 0
        deltas = self._scheduler.update(step, output)
        if self._traced:
            self._trace(step, deltas, time.perf_counter() - began)
        return deltas

    def _fail(self, step: SchedulerOutput, error: Exception) -> list[TokenDelta]:
        self._failures += 1
        log.error("Step %d with %d requests failed", step.step, len(step.rows), exc_info=error)
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if self._failures >= MAX_CONSECUTIVE_FAILURES:
            self.fatal_error = f"{self._failures} steps in a row failed, the last one with {reason}"
        deltas = self._scheduler.fail_step(step, f"The engine failed while it computed this request ({reason})")
        self._traced.difference_update(delta.request_id for delta in deltas)
        return deltas

    def _trace(self, step: SchedulerOutput, deltas: list[TokenDelta], seconds: float) -> None:
        assert self._on_trace is not None
        for delta in deltas:
            if delta.request_id not in self._traced:
                continue
            fields: dict[str, int | float | str | list[int]] = {
                "step": step.step,
                "tokens_in_step": step.total_tokens,
                "requests_in_step": len(step.rows),
                "milliseconds": round(seconds * 1000, 3),
                "token_ids": delta.token_ids,
            }
            self._on_trace(TraceEvent(delta.request_id, time.time(), "step", fields))
            if delta.finish_reason is not None:
                self._traced.discard(delta.request_id)
