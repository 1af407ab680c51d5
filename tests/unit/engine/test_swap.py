"""A scheduler with a host tier: what leaves the device comes back, and what was never computed does not."""

from __future__ import annotations

import pytest

from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.step import SchedulerOutput
from tests.unit.engine.null_model import Harness, expected_tokens

SHARED = list(range(16))  # four blocks
FILLER = list(range(100, 124))


def engine_with(num_blocks: int, num_host_blocks: int, **fields: object) -> Harness:
    return Harness(num_blocks=num_blocks, num_host_blocks=num_host_blocks, max_num_batched_tokens=64, **fields)


def finished(engine: Harness, prompt: list[int], **fields: object) -> str:
    """The name of a request with this prompt that has run to its end."""
    name = engine.add(prompt, **fields)
    engine.run()
    assert engine.tokens[name] == expected_tokens(prompt, 4, engine.salts[name])
    return name


def scheduled(engine: Harness) -> SchedulerOutput:
    output = engine.scheduler.schedule()
    assert output is not None
    return output


def test_an_evicted_prefix_is_copied_back_instead_of_computed() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER)
    computed = engine.model.num_computed
    name = finished(engine, [*SHARED, 3, 4])
    assert engine.model.num_computed - computed == 2 + 3  # the last of the 4 generated tokens is never computed
    assert engine.last[name].num_cached_tokens == len(SHARED)
    assert engine.scheduler.stats().host_cache_hits > 0


def test_a_prefix_may_be_partly_on_the_device_and_partly_on_the_host() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER[:18])  # takes the end of the prefix, not its beginning
    name = engine.add([*SHARED, 3, 4])
    output = scheduled(engine)
    assert 0 < len(output.copies_in) < 4
    assert output.num_computed_tokens == [len(SHARED)]
    engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    engine.run()
    assert engine.tokens[name] == expected_tokens([*SHARED, 3, 4], 4)


def test_requests_of_one_step_share_what_it_copies_back() -> None:
    engine = engine_with(num_blocks=16, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, list(range(100, 160)))
    names = [engine.add([*SHARED, 3, 4]), engine.add([*SHARED, 5, 6])]
    output = scheduled(engine)
    assert len(output.new_rows) == 2
    assert len(output.copies_in) == 4
    engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    engine.run()
    assert [engine.last[name].num_cached_tokens for name in names] == [16, 16]


def test_a_step_loads_no_more_than_it_could_compute_but_always_one_request() -> None:
    engine = Harness(num_blocks=64, num_host_blocks=64, max_num_batched_tokens=16)
    prompts = [[100 * i + token for token in range(24)] for i in range(3)]
    for prompt in [*prompts, *([1000 + 100 * i + token for token in range(100)] for i in range(3))]:
        finished(engine, prompt)
    names = [engine.add([*prompt, 5, 6]) for prompt in prompts]
    for _ in names:
        output = engine.step()
        assert output is not None
        assert len(output.copies_in) == 6
    engine.run()
    assert all(engine.last[name].num_cached_tokens == 24 for name in names)


def test_content_that_came_back_is_not_copied_out_a_second_time() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=32)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER)
    finished(engine, [*SHARED, 1, 2])
    copied = []
    engine.add(FILLER)
    while engine.scheduler.has_work():
        output = engine.step()
        assert output is not None
        copied += output.copies_out
    assert copied == []


def test_another_salt_finds_nothing_on_the_host() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2], cache_salt="a")
    finished(engine, FILLER)
    assert engine.last[finished(engine, [*SHARED, 1, 2], cache_salt="b")].num_cached_tokens == 0


def test_a_reset_empties_both_tiers() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER)
    assert engine.scheduler.stats().host_cache_usage > 0
    engine.scheduler.reset_prefix_cache()
    assert engine.scheduler.stats().host_cache_usage == 0
    assert engine.last[finished(engine, [*SHARED, 1, 2])].num_cached_tokens == 0


def test_nothing_of_a_step_that_failed_is_found_on_the_host() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    engine.add(FILLER)
    engine.fail_step()  # it was to copy the shared blocks out
    assert engine.scheduler.stats().host_cache_usage == 0
    name = finished(engine, [*SHARED, 3, 4])
    assert engine.last[name].num_cached_tokens < len(SHARED)


def test_what_a_failed_step_was_to_copy_back_is_not_found_on_the_device() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER)
    engine.add([*SHARED, 3, 4])
    engine.fail_step()
    finished(engine, [*SHARED, 5, 6])  # checks every key that it attends to


def test_a_failed_step_takes_along_what_the_next_one_saved_of_it() -> None:
    engine = engine_with(num_blocks=6, num_host_blocks=16, preemption_mode="swap")
    scheduler = engine.scheduler
    names = [engine.add(list(range(8)), max_tokens=12), engine.add(list(range(50, 58)), max_tokens=12)]
    while not scheduler.stats().num_swapped:
        first = scheduled(engine)
        second = scheduler.schedule()
        if scheduler.stats().num_swapped:
            break
        engine.collect(scheduler.update(first, engine.model.execute(first)))
        if second is not None:
            engine.collect(scheduler.update(second, engine.model.execute(second)))
    engine.model.forget(first)
    engine.collect(scheduler.fail_step(first, "the device is gone"))
    if second is not None:
        engine.collect(scheduler.update(second, engine.model.execute(second, ended=set(engine.last))))
    assert scheduler.stats().host_cache_usage == 0
    assert scheduler.stats().num_swapped == 0
    assert {engine.last[name].finish_reason for name in names} == {"error"}


def test_a_request_that_failed_leaves_nothing_in_either_tier() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=16)
    finished(engine, [*SHARED, 1, 2])
    finished(engine, FILLER)
    engine.add([*SHARED, 3, 4])
    engine.step(fail=[0])
    assert engine.last[finished(engine, [*SHARED, 5, 6])].num_cached_tokens == 0


def crowded(preemption_mode: str) -> tuple[Harness, list[str]]:
    """Two requests that together outgrow the device, at the moment when the second has been preempted."""
    engine = engine_with(num_blocks=8, num_host_blocks=16, preemption_mode=preemption_mode)
    names = [engine.add(list(range(8)), max_tokens=16), engine.add(list(range(50, 58)), max_tokens=16)]
    while not engine.scheduler.stats().num_preemptions:
        assert engine.step() is not None
    return engine, names


def test_a_swapped_request_comes_back_with_all_its_full_blocks() -> None:
    engine, (_, name) = crowded("swap")
    assert engine.scheduler.stats().num_swapped == 1
    known = 8 + len(engine.tokens[name])
    output = engine.step()
    while output is not None and not output.new_rows:
        output = engine.step()
    assert output is not None
    assert output.num_computed_tokens[-1] == (known - 1) // 4 * 4
    assert engine.scheduler.stats().num_swapped == 0
    engine.run()
    assert engine.tokens[name] == expected_tokens(list(range(50, 58)), 16)


def test_a_swapped_request_keeps_its_slots_whatever_else_is_evicted() -> None:
    engine = engine_with(num_blocks=8, num_host_blocks=4, preemption_mode="swap")
    names = [engine.add(list(range(8)), max_tokens=20), engine.add(list(range(50, 58)), max_tokens=16)]
    while not engine.scheduler.stats().num_swapped:
        assert engine.step() is not None
    kv_cache = engine.scheduler.kv_cache
    (held,) = kv_cache._swapped.values()
    assert kv_cache.host is not None
    kept = [kv_cache.host._digest_of[slot] for slot in held]
    while engine.scheduler.stats().num_swapped:
        assert [kv_cache.host._digest_of[slot] for slot in held] == kept
        assert engine.step() is not None
    engine.run()
    assert engine.tokens[names[1]] == expected_tokens(list(range(50, 58)), 16)


def test_recompute_copies_nothing_before_it_is_overwritten() -> None:
    engine, _ = crowded("recompute")
    assert engine.scheduler.stats().num_swapped == 0


@pytest.mark.parametrize("end", ["abort", "reset"])
def test_a_swapped_request_that_ends_or_loses_its_cache_holds_no_slot(end: str) -> None:
    engine, (_, name) = crowded("swap")
    if end == "abort":
        engine.scheduler.abort(name)
    else:
        engine.scheduler.reset_prefix_cache()
    assert engine.scheduler.stats().num_swapped == 0
    host = engine.scheduler.kv_cache.host
    assert host is not None
    assert not any(host._num_holders)


def test_a_host_tier_without_a_prefix_cache_is_an_error() -> None:
    with pytest.raises(ValueError, match="prefix cache, which is off"):
        KVCacheManager(8, 4, enable_prefix_caching=False, num_host_blocks=4)
