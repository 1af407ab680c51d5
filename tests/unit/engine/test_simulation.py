"""A hundred thousand requests through the scheduler, and what a step costs however many of them wait.

Cost is counted in executed lines of Python, not in time, so the verdict does not depend on the machine.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from appliance.engine.scheduler import Scheduler
from tests.unit.engine.null_model import CountingModel, make_request, make_scheduler

POLICIES = ["fcfs", "priority", "fair"]


def big_scheduler(policy: str, *, max_num_seqs: int = 64, num_blocks: int = 2048) -> tuple[Scheduler, CountingModel]:
    scheduler = make_scheduler(
        policy=policy,
        num_blocks=num_blocks,
        block_size=16,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=2048,
        max_model_len=256,
    )
    return scheduler, CountingModel(max_num_seqs)


def step(scheduler: Scheduler, model: CountingModel) -> int:
    """One step; returns how many requests it ended."""
    output = scheduler.schedule()
    assert output is not None
    return sum(delta.finish_reason is not None for delta in scheduler.update(output, model.execute(output)))


def lines_executed(work: Callable[[], object]) -> int:
    """Lines of Python that `work` runs, every turn of a loop counted."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("policy", POLICIES)
def test_a_hundred_thousand_requests_all_end_once_and_leave_nothing_behind(policy: str) -> None:
    total = 100_000 if policy == "fcfs" else 10_000
    scheduler, model = big_scheduler(policy, max_num_seqs=256, num_blocks=4096)
    generator = random.Random(7)
    stems = [[generator.randrange(1000) for _ in range(48)] for _ in range(20)]
    added, ended, aborted = 0, 0, 0
    while ended + aborted < total:
        # Arrivals outrun service, so the queue grows into the tens of thousands.
        for i in range(added, min(total, added + 200)):
            scheduler.add_request(
                make_request(
                    [*stems[generator.randrange(20)], i],
                    request_id=str(i),
                    max_tokens=generator.randrange(1, 12),
                    priority=i % 3,
                    key_id=f"key-{i % 7}",
                )
            )
            added += 1
        aborted += scheduler.abort(str(generator.randrange(added)))
        ended += step(scheduler, model)
    assert not scheduler.has_work()
    assert scheduler.schedule() is None
    assert scheduler.stats().num_waiting == 0
    assert scheduler.kv_cache.num_free_blocks == scheduler.kv_cache.num_blocks


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_costs_the_same_with_a_hundred_and_with_a_hundred_thousand_waiting(policy: str) -> None:
    cost = {}
    for queued in (100, 100_000):
        scheduler, model = big_scheduler(policy, max_num_seqs=16)
        for i in range(queued + 16):
            scheduler.add_request(
                make_request(range(20), request_id=str(i), max_tokens=1 + i % 8, priority=i % 3, key_id=f"{i % 7}")
            )
        for _ in range(4):
            step(scheduler, model)
        gc.collect()
        cost[queued] = lines_executed(lambda: [step(scheduler, model) for _ in range(10)])  # noqa: B023
    assert abs(cost[100_000] - cost[100]) < 0.02 * cost[100]


@pytest.mark.parametrize("policy", POLICIES)
def test_aborting_a_waiting_request_costs_the_same_in_a_long_queue(policy: str) -> None:
    cost = {}
    for queued in (100, 10_000):
        scheduler, _ = big_scheduler(policy)
        for i in range(queued):
            scheduler.add_request(make_request([1, 2, 3], request_id=str(i), priority=i % 3, key_id=f"{i % 7}"))
        # All of them, because a queue may put the work off: what counts is the average.
        cost[queued] = lines_executed(lambda: [scheduler.abort(str(i)) for i in range(queued)]) / queued  # noqa: B023
        assert scheduler.stats().num_waiting == 0
    assert cost[10_000] < 1.2 * cost[100]


def test_a_step_costs_the_same_in_a_small_and_in_a_large_cache() -> None:
    cost = {}
    for num_blocks in (128, 65_536):
        scheduler, model = big_scheduler("fcfs", max_num_seqs=16, num_blocks=num_blocks)
        for i in range(200):
            scheduler.add_request(make_request([i] * 20, request_id=str(i), max_tokens=8))
        for _ in range(12):  # the small cache is used up by now and reuses blocks
            step(scheduler, model)
        cost[num_blocks] = lines_executed(lambda: [step(scheduler, model) for _ in range(16)])  # noqa: B023
    assert abs(cost[65_536] - cost[128]) < 0.05 * cost[128]
