"""Sheds what cannot end before a deadline, while the engine goes on with the rest."""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.engine.request import Request, RequestStatus
from appliance.engine.scheduler import Scheduler
from appliance.engine.step import SchedulerOutput
from appliance.lifecycle.drain_forecast import Machine
from appliance.lifecycle.drain_planner import Pending, outlook, to_shed
from appliance.lifecycle.output_lengths import OutputLengths
from appliance.lifecycle.step_pace import StepPace, StepTimes
from appliance.protocol.wire import DrainOutlook

PLAN_SECONDS = 1.0  # from one plan to the next: lengths and paces become known by and by
MOST_TIME_SHARE = 0.02  # of the engine's time that plans may take
FEWEST_STEPS = 8  # a pace from less is no pace
FLUSH_SECONDS = 0.5  # before the deadline, so that what ends there still reaches the clients


class EngineDrain:
    """Watches the steps of one scheduler, always; plans once it has a deadline, in `time.monotonic()` seconds."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._deadline: float | None = None
        self._next_plan = 0.0
        self._outlook: DrainOutlook | None = None
        self._outlook_until = 0.0
        self._steps = StepTimes()
        self._num_steps = 0
        self._last_end = 0.0

    def set_deadline(self, deadline: float | None) -> None:
        """What still runs at `deadline` is shed then; None: nothing is shed any more."""
        self._deadline = deadline
        self._next_plan = self._outlook_until = 0.0

    def step_ended(self, step: SchedulerOutput, began: float) -> None:
        """`began`: when it was started, by the same clock."""
        now = self._clock()
        sequences = len(step.rows)
        self._steps.add(sequences, step.total_tokens - sequences, now - max(began, self._last_end))
        self._num_steps += 1
        self._last_end = now

    def due(self) -> list[str]:
        """Ids of the requests to shed now."""
        deadline = self._deadline
        if deadline is None:
            return []
        now = self._clock()
        seconds_left = deadline - FLUSH_SECONDS - now
        if seconds_left > 0.0 and now < self._next_plan:
            return []
        pace = self._pace()
        if pace is None and seconds_left > 0.0:
            return []
        machine = self._machine(pace or StepPace(0.0, 0.0, 0.0))
        began = time.perf_counter()
        shed = to_shed(self._pending(), machine, self._lengths(), seconds_left)
        self._next_plan = now + max(PLAN_SECONDS, (time.perf_counter() - began) / MOST_TIME_SHARE)
        return shed

    def outlook(self) -> DrainOutlook | None:
        """For a request that comes now; None without a deadline, and while the engine's pace is unknown."""
        if self._deadline is None:
            return None
        now = self._clock()
        if now >= self._outlook_until:
            self._outlook_until = now + PLAN_SECONDS
            self._outlook = self._new_outlook()
        return self._outlook

    def _new_outlook(self) -> DrainOutlook | None:
        pace = self._pace()
        if pace is None:
            return None
        found = outlook(self._pending(), self._machine(pace), self._lengths())
        return DrainOutlook(found.start, found.seconds_per_prompt_token, found.seconds_per_token, found.typical_tokens)

    def _pace(self) -> StepPace | None:
        return self._steps.pace() if self._num_steps >= FEWEST_STEPS else None

    def _machine(self, pace: StepPace) -> Machine:
        config, cache = self._scheduler.config, self._scheduler.kv_cache
        return Machine(
            pace=pace,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            kv_cache_tokens=cache.num_blocks * cache.block_size,
        )

    def _pending(self) -> list[Pending]:
        return [_pending(request) for request in self._scheduler.live_requests()]

    def _lengths(self) -> OutputLengths:
        """Those that still run say as well how long outputs can become."""
        running = ((request.num_output_tokens, False) for request in self._scheduler.live_requests())
        return OutputLengths([*self._scheduler.output_lengths, *running])


def _pending(request: Request) -> Pending:
    generated = request.num_output_tokens
    most_left = max(1, request.max_total_tokens - request.num_tokens)
    least_left = max(1, request.sampling.min_tokens - generated)
    if not request.stop_token_ids and not request.sampling.stop:
        least_left = most_left
    return Pending(
        request_id=request.request_id,
        to_compute=max(1, request.num_tokens_ahead - request.num_computed_tokens),
        generated=generated,
        known=request.num_tokens,
        least_left=min(least_left, most_left),
        most_left=most_left,
        has_place=request.status is RequestStatus.RUNNING,
    )
