from __future__ import annotations

import time
from collections.abc import Callable

from appliance.engine.core import MAX_CONSECUTIVE_FAILURES, EngineCore
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.engine.warm_up import warm_up
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest, TokenDelta, TraceEvent


class Scripted:
    """Samples token 7 wherever a prompt is finished; raises at the steps (counted from 1) in `failing`."""

    def __init__(self, failing: tuple[int, ...] = ()) -> None:
        self.failing = failing
        self.steps = 0
        self.lengths: dict[int, int] = {}

    depth = 1

    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        self.steps += 1
        for new in step.new_rows:
            self.lengths[new.row] = len(new.token_ids)
        if self.steps in self.failing:
            raise RuntimeError("out of luck")
        sampled = []
        for row, computed, scheduled in zip(
            step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True
        ):
            complete = computed + scheduled == self.lengths[row]
            sampled.append([7] if complete else [])
            self.lengths[row] += complete
        return lambda: ModelOutput(sampled)


def make_core(model: Scripted, events: list[TraceEvent] | None = None) -> EngineCore:
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8, max_model_len=64)
    on_event = None if events is None else events.append
    return EngineCore(Scheduler(config, KVCacheManager(16, 4), on_event=on_event), model, on_event)


def request(request_id: str, num_prompt_tokens: int = 3, max_tokens: int = 2, trace: bool = False) -> AddRequest:
    sampling = SamplingParams(max_tokens=max_tokens, seed=1)
    return AddRequest(request_id, [1] * num_prompt_tokens, sampling, time.time(), trace=trace)


def run_out(core: EngineCore) -> list[TokenDelta]:
    deltas: list[TokenDelta] = []
    while core.has_work():
        deltas += core.step()
    return deltas


def test_requests_run_to_their_end() -> None:
    core = make_core(Scripted())
    assert core.add(request("a")) is None
    assert core.add(request("b", num_prompt_tokens=20)) is None
    deltas = run_out(core)
    for request_id in "ab":
        mine = [delta for delta in deltas if delta.request_id == request_id]
        assert [delta.token_ids for delta in mine] == [[7], [7]]
        assert mine[-1].finish_reason == "length"
    assert core.stats().kv_cache_usage == 0


def test_a_request_that_can_never_run_is_answered_at_once_and_leaves_nothing() -> None:
    core = make_core(Scripted())
    refusal = core.add(request("long", num_prompt_tokens=100))
    assert refusal is not None and refusal.finish_reason == "error" and "64" in (refusal.error or "")
    assert not core.has_work()


def test_a_failed_step_ends_those_that_were_in_it_and_the_next_ones_run() -> None:
    core = make_core(Scripted(failing=(1,)))
    core.add(request("a"))
    (failed,) = core.step()
    assert (failed.request_id, failed.finish_reason) == ("a", "error")
    assert "out of luck" in (failed.error or "")
    core.add(request("b"))
    assert run_out(core)[-1].finish_reason == "length"
    assert core.fatal_error is None
    assert core.stats().kv_cache_usage == 0


def test_failures_are_fatal_only_in_a_row() -> None:
    assert MAX_CONSECUTIVE_FAILURES == 3
    core = make_core(Scripted(failing=(1, 2, 4, 5, 6)))
    for turn in range(4):
        core.add(request(f"r{turn}", max_tokens=1))
        run_out(core)
    assert core.fatal_error is None
    for turn in range(4, 6):
        core.add(request(f"r{turn}", max_tokens=1))
        run_out(core)
    assert core.fatal_error is not None and "out of luck" in core.fatal_error


def test_an_aborted_request_says_nothing_more() -> None:
    core = make_core(Scripted())
    core.add(request("a", max_tokens=50))
    core.add(request("b", max_tokens=5))
    core.step()
    core.abort(["a", "unknown"])
    assert {delta.request_id for delta in run_out(core)} == {"b"}


def test_the_steps_of_a_traced_request_are_told_with_their_time() -> None:
    events: list[TraceEvent] = []
    core = make_core(Scripted(), events)
    core.add(request("a", num_prompt_tokens=10, trace=True))
    run_out(core)
    core.add(request("b"))
    run_out(core)
    steps = [event.fields for event in events if event.event == "step"]
    assert [(fields["tokens"], fields["requests"]) for fields in steps] == [(8, 1), (2, 1), (1, 1)]
    assert all(float(fields["milliseconds"]) >= 0 for fields in steps if isinstance(fields["milliseconds"], float))


def test_the_warm_up_leaves_no_trace() -> None:
    core = make_core(Scripted())
    warm_up(core)
    assert not core.has_work()
    assert core.stats().kv_cache_usage == 0
