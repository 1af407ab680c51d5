from __future__ import annotations

import pytest

from appliance.engine.request import RequestError
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.step import ModelOutput
from appliance.protocol.wire import TokenLogprobs, TraceEvent
from tests.unit.engine.null_model import CheckingModel, Harness, expected_tokens, make_request, make_scheduler

# ---- tokens and outcomes ---------------------------------------------------------------------------------------------


def test_a_request_gets_its_tokens_one_a_step_and_ends_by_length() -> None:
    engine = Harness()
    name = engine.add(range(10), max_tokens=5)
    assert engine.run() == 5
    assert engine.tokens[name] == expected_tokens(range(10), 5)
    assert engine.last[name].finish_reason == "length"
    assert engine.last[name].stop_reason is None
    assert engine.scheduler.kv_cache.usage == 0


def test_a_request_without_max_tokens_ends_when_the_context_is_full() -> None:
    engine = Harness(max_model_len=16)
    name = engine.add(range(10), max_tokens=None)
    engine.run()
    assert len(engine.tokens[name]) == 6
    assert engine.last[name].finish_reason == "length"


def test_a_stop_token_ends_the_request_and_is_the_last_token_delivered() -> None:
    tokens = expected_tokens(range(10), 8)
    engine = Harness()
    name = engine.add(range(10), max_tokens=8, stop_token_ids=(tokens[2],))
    engine.run()
    assert engine.tokens[name] == tokens[: tokens.index(tokens[2]) + 1]
    assert engine.last[name].finish_reason == "stop"
    assert engine.last[name].stop_reason == tokens[2]


def test_the_end_of_sequence_token_ends_the_request_without_a_stop_reason_unless_ignored() -> None:
    tokens = expected_tokens(range(10), 8)
    eos = tokens[3]
    engine = Harness(eos_token_ids=(eos,))
    ends = engine.add(range(10), max_tokens=8)
    ignores = engine.add(range(10), max_tokens=8, ignore_eos=True)
    asks_for_it = engine.add(range(10), max_tokens=8, ignore_eos=True, stop_token_ids=(eos,))
    engine.run()
    upto_eos = tokens[: tokens.index(eos) + 1]
    assert engine.tokens[ends] == upto_eos
    assert (engine.last[ends].finish_reason, engine.last[ends].stop_reason) == ("stop", None)
    assert engine.tokens[ignores] == tokens
    assert engine.last[ignores].finish_reason == "length"
    assert engine.tokens[asks_for_it] == upto_eos
    assert engine.last[asks_for_it].stop_reason == eos


def test_stop_tokens_do_not_end_a_request_before_min_tokens() -> None:
    tokens = expected_tokens(range(10), 8)
    engine = Harness()
    name = engine.add(range(10), max_tokens=8, min_tokens=8, stop_token_ids=tuple(tokens))
    engine.run()
    assert engine.tokens[name] == tokens
    assert engine.last[name].finish_reason == "length"


def test_tokens_sampled_beyond_the_end_are_not_delivered() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request(range(5), max_tokens=9, stop_token_ids=(7,)))
    output = scheduler.schedule()
    assert output is not None
    entry = [TokenLogprobs([t], [0.0], 1) for t in (3, 7, 8)]
    (delta,) = scheduler.update(output, ModelOutput([[3, 7, 8]], logprobs={0: entry}))
    assert delta.token_ids == [3, 7]
    assert delta.logprobs == entry[:2]
    assert delta.finish_reason == "stop"


def test_a_request_without_a_seed_gets_one_and_a_seed_is_kept() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request(range(5), seed=None))
    scheduler.add_request(make_request(range(5), seed=11))
    output = scheduler.schedule()
    assert output is not None
    drawn, kept = (new.sampling.seed for new in output.new_rows)
    assert drawn is not None
    assert 0 <= drawn < 2**63
    assert kept == 11


def test_times_come_with_the_first_token_and_only_then() -> None:
    now = [100.0]
    engine = Harness(clock=lambda: now[0], max_num_batched_tokens=8)
    engine.add(range(12), max_tokens=3, arrival_time=98.5)
    for now[0] in (100.0, 101.0, 102.0, 103.0):
        engine.step()
    first, second, third = engine.deltas
    assert first.queue_time == pytest.approx(1.5)
    assert first.prefill_time == pytest.approx(1.0)
    assert second.queue_time is second.prefill_time is third.queue_time is None


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_impossible_requests_are_refused_with_the_number_to_change() -> None:
    scheduler = make_scheduler(num_blocks=8, block_size=4, max_model_len=64)
    with pytest.raises(RequestError, match="no tokens") as caught:
        scheduler.add_request(make_request([]))
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match=r"64 tokens, and at most 63 fit .* max_model_len \(64\)"):
        scheduler.add_request(make_request(range(64)))
    with pytest.raises(RequestError, match="need 9 key/value cache blocks of 4 tokens, and the cache has 8"):
        scheduler.add_request(make_request(range(30), max_tokens=4))
    scheduler.add_request(make_request(range(30), max_tokens=3, request_id="twice"))
    with pytest.raises(RequestError, match="'twice'"):
        scheduler.add_request(make_request(range(3), request_id="twice"))
    assert scheduler.stats().num_waiting == 1


def test_settings_under_which_a_request_could_never_run_are_refused() -> None:
    numbers = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128}
    SchedulerConfig(**numbers)
    for change, message in (
        ({"enable_chunked_prefill": False}, "Raise max_num_batched_tokens to 128"),
        ({"max_num_seqs": 65}, r"max_num_batched_tokens \(64\) must be at least max_num_seqs \(65\)"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
        ({"long_prefill_token_threshold": -1}, "must be 0"),
        (
            {"enable_chunked_prefill": False, "max_num_batched_tokens": 128, "long_prefill_token_threshold": 9},
            "Set the threshold to 0",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            SchedulerConfig(**{**numbers, **change})
    with pytest.raises(ValueError, match="fcfs, priority or fair, got 'random'"):
        make_scheduler(policy="random")


# ---- the token budget ------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_computed_in_chunks_and_sampled_only_at_its_end() -> None:
    engine = Harness(max_num_batched_tokens=16)
    name = engine.add(range(40), max_tokens=2)
    chunks = []
    while (output := engine.step()) is not None:
        chunks.append((output.num_computed_tokens, output.num_scheduled_tokens, len(engine.tokens[name])))
    assert chunks == [([0], [16], 0), ([16], [16], 0), ([32], [8], 1), ([40], [1], 2)]


def test_a_running_request_gets_its_next_token_before_the_prompt_of_a_more_urgent_one_is_continued() -> None:
    engine = Harness(policy="priority", max_num_batched_tokens=8)
    short = engine.add([1, 2, 3], priority=1, max_tokens=9)
    engine.step()
    long = engine.add(range(40), priority=0)
    for done in range(1, 6):
        output = engine.step()
        assert output is not None
        assert dict(zip(output.rows, output.num_scheduled_tokens, strict=True)) == {0: 1, 1: 7}
        assert len(engine.tokens[short]) == 1 + done
    assert engine.tokens[long] == []


def test_the_threshold_caps_the_chunk_of_a_long_prompt() -> None:
    engine = Harness(long_prefill_token_threshold=10)
    engine.add(range(40))
    engine.add(range(100, 120))
    output = engine.step()
    assert output is not None
    assert output.num_scheduled_tokens == [10, 10]


def test_without_chunked_prefill_a_prompt_waits_until_it_fits_whole() -> None:
    engine = Harness(enable_chunked_prefill=False, max_model_len=32, max_num_batched_tokens=32)
    first = engine.add(range(20), max_tokens=2)
    second = engine.add(range(50, 70))
    output = engine.step()
    assert output is not None
    assert output.num_scheduled_tokens == [20]
    output = engine.step()
    assert output is not None
    assert output.num_scheduled_tokens == [1, 20]
    engine.run()
    assert engine.tokens[first] == expected_tokens(range(20), 2)
    assert engine.tokens[second] == expected_tokens(range(50, 70), 4)


def test_no_more_requests_run_than_there_are_rows_and_rows_are_released_before_reuse() -> None:
    engine = Harness(max_num_seqs=2)
    names = [engine.add([i, i, i], max_tokens=1) for i in range(5)]
    outputs = [engine.step() for _ in range(3)]
    assert [output.rows for output in outputs if output] == [[0, 1], [0, 1], [0]]
    assert [output.released_rows for output in outputs if output] == [[], [0, 1], [0, 1]]
    assert all(engine.last[name].finish_reason == "length" for name in names)


# ---- prefix cache ----------------------------------------------------------------------------------------------------


def test_requests_that_arrive_together_compute_their_common_prefix_once() -> None:
    engine = Harness(max_num_seqs=16, max_num_batched_tokens=128)
    names = [engine.add([*range(40), 50 + i], max_tokens=2) for i in range(16)]
    output = engine.step()
    assert output is not None
    assert output.num_scheduled_tokens == [41] + [1] * 15
    engine.run()
    for i, name in enumerate(names):
        assert engine.tokens[name] == expected_tokens([*range(40), 50 + i], 2)
        assert engine.last[name].num_cached_tokens == (0 if i == 0 else 40)
    stats = engine.scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (16 * 41, 15 * 40)


def test_a_second_turn_finds_the_first_turns_output_in_the_cache() -> None:
    engine = Harness()
    first = engine.add(range(10), max_tokens=7)
    engine.run()
    turn = [*range(10), *engine.tokens[first], 1, 2, 3]
    second = engine.add(turn)
    engine.run()
    assert engine.last[second].num_cached_tokens == 16  # all but the last generated token are in the cache
    assert engine.tokens[second] == expected_tokens(turn, 4)


def test_salts_keep_tenants_from_sharing() -> None:
    engine = Harness()
    engine.add(range(20), cache_salt="a")
    engine.run()
    stranger = engine.add(range(20), cache_salt="b")
    friend = engine.add(range(20), cache_salt="a")
    engine.run()
    assert engine.last[stranger].num_cached_tokens == 0
    assert engine.last[friend].num_cached_tokens == 16


def test_prompt_logprobs_are_computed_from_the_first_token_and_delivered_with_the_first_output() -> None:
    engine = Harness(max_num_batched_tokens=8)
    engine.add(range(18))
    engine.run()
    name = engine.add(range(18), prompt_logprobs=1, max_tokens=3)
    engine.run()
    mine = [delta for delta in engine.deltas if delta.request_id == name]
    assert len(mine) == 3
    assert mine[0].num_cached_tokens == 0
    found = mine[0].prompt_logprobs
    assert found is not None
    assert found[0] is None
    assert [entry.token_ids[0] for entry in found[1:] if entry is not None] == list(range(1, 18))
    assert mine[1].prompt_logprobs is None


def test_a_reset_prefix_cache_is_not_read() -> None:
    engine = Harness()
    engine.add(range(20))
    engine.run()
    engine.scheduler.reset_prefix_cache()
    again = engine.add(range(20))
    engine.run()
    assert engine.last[again].num_cached_tokens == 0


# ---- preemption ------------------------------------------------------------------------------------------------------


def preempting_harness(policy: str = "fcfs", **fields: object) -> Harness:
    """11 blocks of 4: two requests of 8 + 30 tokens (10 blocks) are admitted together and cannot both finish."""
    return Harness(policy=policy, num_blocks=11, block_size=4, **fields)


def test_the_latest_request_gives_way_resumes_and_loses_no_token() -> None:
    engine = preempting_harness()
    first = engine.add(range(8), max_tokens=30)
    second = engine.add(range(10, 18), max_tokens=30)
    engine.run()
    assert engine.scheduler.stats().num_preemptions == 1
    assert list(engine.last) == [first, second]
    assert engine.tokens[first] == expected_tokens(range(8), 30)
    assert engine.tokens[second] == expected_tokens(range(10, 18), 30)


def test_a_resumed_request_brings_its_generated_tokens_and_nothing_else_is_admitted_in_the_step_that_preempts() -> None:
    engine = preempting_harness()
    engine.add(range(8), max_tokens=30)
    second = engine.add(range(10, 18), max_tokens=30)
    third = engine.add([1, 2], max_tokens=1)
    engine.step()
    assert third in engine.last
    while engine.scheduler.stats().num_preemptions == 0:
        output = engine.step()
    assert output is not None
    assert output.released_rows == [1]
    assert output.new_rows == []
    generated = list(engine.tokens[second])
    while not (output and output.new_rows):
        output = engine.step()
    assert output is not None
    assert output.new_rows[0].token_ids == [*range(10, 18), *generated]
    assert output.new_rows[0].num_prompt_tokens == 8


def test_under_priority_the_least_urgent_gives_way_even_if_it_came_first() -> None:
    engine = preempting_harness("priority")
    idle = engine.add(range(8), max_tokens=30, priority=5)
    engine.step()
    urgent = engine.add(range(10, 18), max_tokens=30, priority=1)
    engine.run()
    assert list(engine.last) == [urgent, idle]
    assert engine.tokens[idle] == expected_tokens(range(8), 30)


def test_under_fair_the_key_that_got_most_gives_way() -> None:
    engine = preempting_harness("fair")
    greedy = engine.add(range(8), max_tokens=30, key_id="greedy")
    engine.step()
    modest = engine.add(range(10, 18), max_tokens=30, key_id="modest")
    engine.step()
    more = [engine.add(range(20 + i, 28 + i), max_tokens=1, key_id="greedy") for i in range(2)]
    engine.run()
    assert engine.scheduler.stats().num_preemptions == 1
    assert list(engine.last) == [*more, modest, greedy]
    assert engine.tokens[greedy] == expected_tokens(range(8), 30)


def test_prompt_logprobs_are_complete_when_their_prefill_was_preempted() -> None:
    engine = Harness(policy="priority", num_blocks=20, max_num_batched_tokens=8, max_num_seqs=3)
    engine.add(range(50, 56), max_tokens=60, priority=0)
    engine.step()
    victim = engine.add(range(30), prompt_logprobs=0, max_tokens=2, priority=9)
    engine.step()
    # Nothing in ordinary operation preempts a prefill here, so take the blocks away from under it.
    engine.scheduler._preempt(engine.scheduler._running[victim])
    engine.run()
    first = next(delta for delta in engine.deltas if delta.request_id == victim)
    assert first.prompt_logprobs is not None
    assert [entry.token_ids[0] for entry in first.prompt_logprobs[1:] if entry] == list(range(1, 30))


def test_a_full_cache_does_not_admit_what_it_would_preempt_at_once() -> None:
    engine = Harness(num_blocks=10, block_size=4)
    for i in range(4):
        engine.add([i] * 8, max_tokens=5)
    engine.run()
    assert engine.scheduler.stats().num_preemptions == 0


# ---- aborts and failures ---------------------------------------------------------------------------------------------


def test_an_abort_frees_blocks_at_once_wherever_the_request_is() -> None:
    engine = Harness(max_num_seqs=2)
    running, under_way, waiting = (engine.add(range(10 * i, 10 * i + 10)) for i in range(3))
    engine.step()
    scheduler = engine.scheduler
    assert scheduler.stats().num_running == 2

    assert scheduler.abort(running)
    assert scheduler.kv_cache.usage == pytest.approx(3 / 64)
    assert scheduler.abort(waiting)
    output = scheduler.schedule()
    assert output is not None
    assert output.released_rows == [0]
    assert scheduler.abort(under_way)
    assert scheduler.kv_cache.usage == 0
    assert not scheduler.has_work()
    assert scheduler.update(output, engine.model.execute(output)) == []
    assert scheduler.schedule() is None

    assert not scheduler.abort(running)
    assert not scheduler.abort("never seen")
    again = engine.add(range(5), max_tokens=1)
    output = engine.step()
    assert output is not None
    assert output.released_rows == [1]
    assert engine.tokens[again] == expected_tokens(range(5), 1)


def test_one_request_that_fails_leaves_the_others_alone() -> None:
    engine = Harness()
    first, second, third = (engine.add([i] * 6) for i in range(3))
    engine.step(fail=[1])
    engine.run()
    assert engine.last[second].finish_reason == "error"
    assert engine.last[second].error == "made to fail"
    assert engine.tokens[second] == []
    assert engine.tokens[first] == expected_tokens([0] * 6, 4)
    assert engine.tokens[third] == expected_tokens([2] * 6, 4)
    again = engine.add([1] * 6)
    engine.run()
    assert engine.last[again].num_cached_tokens == 0, "the cache must not spread what made a request fail"


def test_what_a_failed_step_was_to_write_is_not_shared_later() -> None:
    engine = Harness()
    lost = [engine.add(range(20)) for _ in range(3)]
    waiting = engine.add(range(90, 120), max_tokens=1)
    engine.fail_step()
    assert all(engine.last[name].finish_reason == "error" for name in lost)
    assert engine.last[lost[0]].error == "the device is gone"
    assert engine.scheduler.kv_cache.usage == 0
    assert engine.last[waiting].finish_reason == "error"
    again = engine.add(range(20))
    engine.run()
    assert engine.last[again].num_cached_tokens == 0
    assert engine.tokens[again] == expected_tokens(range(20), 4)


def test_requests_outside_a_failed_step_go_on() -> None:
    engine = Harness(max_num_seqs=1)
    lost = engine.add(range(20))
    waiting = engine.add(range(20))
    engine.fail_step()
    engine.run()
    assert engine.last[lost].finish_reason == "error"
    assert engine.tokens[waiting] == expected_tokens(range(20), 4)


def test_rows_of_a_failed_step_are_released_even_if_the_runner_never_saw_that_step() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    model = CheckingModel(64, 4)
    for _ in range(2):
        scheduler.add_request(make_request([1, 2], max_tokens=1))
    output = scheduler.schedule()
    assert output is not None
    scheduler.update(output, model.execute(output))
    scheduler.add_request(make_request([3, 4]))
    output = scheduler.schedule()
    assert output is not None
    assert (output.rows, output.released_rows) == ([0], [0, 1])
    scheduler.fail_step(output, "raised before anything was done")
    for _ in range(2):
        scheduler.add_request(make_request([5, 6]))
    output = scheduler.schedule()
    assert output is not None
    assert (output.rows, output.released_rows) == ([0, 1], [0, 1])
    model.execute(output)


@pytest.mark.parametrize(("prompt_length", "sampled"), [(10, []), (80, [5])])
def test_a_runner_that_breaks_its_promise_fails_the_request_and_does_not_hang_it(
    prompt_length: int, sampled: list[int]
) -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request(range(prompt_length)))
    output = scheduler.schedule()
    assert output is not None
    (delta,) = scheduler.update(output, ModelOutput([sampled]))
    assert delta.finish_reason == "error"
    assert not scheduler.has_work()


# ---- steps scheduled ahead of an outcome -----------------------------------------------------------------------------


def test_a_step_scheduled_ahead_goes_on_behind_a_token_that_is_not_known_yet() -> None:
    engine = Harness(max_num_batched_tokens=8)
    short = engine.add([1, 2, 3], max_tokens=2)
    long = engine.add(range(10, 30), max_tokens=1)
    outputs = [engine.scheduler.schedule() for _ in range(3)]
    # The last token of a request is not computed, so the third step leaves the short one out.
    assert [(output.rows, output.num_scheduled_tokens) for output in outputs if output is not None] == [
        ([0, 1], [3, 5]),
        ([0, 1], [1, 7]),
        ([1], [8]),
    ]
    for output in outputs:
        assert output is not None
        engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    assert not engine.scheduler.has_work()
    assert engine.tokens[short] == expected_tokens([1, 2, 3], 2)
    assert engine.tokens[long] == expected_tokens(range(10, 30), 1)


def test_what_a_step_adds_to_a_request_that_has_ended_meanwhile_is_dropped() -> None:
    engine = Harness()
    stop = expected_tokens([1, 2, 3], 2)[1]
    name = engine.add([1, 2, 3], max_tokens=9, stop_token_ids=(stop,), min_tokens=1)
    while engine.scheduler.has_work():
        outputs = [output for _ in range(2) if (output := engine.scheduler.schedule()) is not None]
        for output in outputs:
            engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    assert engine.tokens[name] == expected_tokens([1, 2, 3], 2)
    assert engine.last[name].finish_reason == "stop"


def test_a_request_preempted_while_its_token_is_under_way_resumes_behind_that_token() -> None:
    engine = Harness()
    name = engine.add(range(6), max_tokens=5)
    engine.step()
    output = engine.scheduler.schedule()
    assert output is not None
    engine.scheduler._preempt(engine.scheduler._running[name])
    assert engine.scheduler.schedule() is None  # nobody knows its newest token
    engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    engine.run()
    assert engine.tokens[name] == expected_tokens(range(6), 5)


def test_a_failed_step_takes_along_the_steps_scheduled_after_it() -> None:
    engine = Harness(max_num_seqs=2, max_num_batched_tokens=6, block_size=4)
    lost = engine.add(range(8), max_tokens=1)
    first, second = engine.scheduler.schedule(), engine.scheduler.schedule()
    assert first is not None
    assert second is not None
    engine.model.forget(first)
    engine.collect(engine.scheduler.fail_step(first, "the device is gone"))
    assert engine.last[lost].finish_reason == "error"
    assert engine.scheduler.update(second, engine.model.execute(second, ended=[lost])) == []
    # The second block was half written by the step that failed, and promised by the one after it.
    for num_cached_tokens in (0, 8):
        again = engine.add([*range(8), 9], max_tokens=1)
        engine.run()
        assert engine.last[again].num_cached_tokens == num_cached_tokens
        assert engine.tokens[again] == expected_tokens([*range(8), 9], 1)


def test_prompt_logprobs_are_complete_when_their_step_was_under_way_at_the_preemption() -> None:
    engine = Harness(max_num_batched_tokens=8)
    name = engine.add(range(30), prompt_logprobs=0, max_tokens=2)
    engine.step()
    output = engine.scheduler.schedule()
    assert output is not None
    engine.scheduler._preempt(engine.scheduler._running[name])
    engine.collect(engine.scheduler.update(output, engine.model.execute(output)))
    engine.run()
    found = engine.deltas[0].prompt_logprobs
    assert found is not None
    assert [entry.token_ids[0] for entry in found[1:] if entry] == list(range(1, 30))


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_stats_count_what_happened() -> None:
    engine = Harness(max_num_seqs=1)
    engine.add(range(10), max_tokens=3)
    engine.add(range(10), max_tokens=3)
    engine.step()
    stats = engine.scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.iteration_tokens) == (1, 1, 10)
    assert stats.kv_cache_usage == pytest.approx(3 / 64)
    engine.run()
    stats = engine.scheduler.stats()
    assert (stats.steps, stats.prompt_tokens, stats.generation_tokens) == (6, 20, 6)
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0)


def test_a_traced_request_tells_its_life_and_others_tell_nothing() -> None:
    events: list[TraceEvent] = []
    engine = preempting_harness(on_event=events.append)
    engine.add(range(8), max_tokens=30)
    traced = engine.add(range(10, 18), max_tokens=30, trace=True)
    engine.run()
    assert {event.request_id for event in events} == {traced}
    names = [event.event for event in events]
    assert names[:5] == ["queued", "admitted", "blocks_allocated", "scheduled", "token"]
    assert names.count("token") == 30
    assert names.count("preempted") == 1
    assert names.count("admitted") == 2
    assert names[-1] == "finished"
    assert events[-1].fields == {"reason": "length", "blocks_freed": 10}
    assert [event.fields["token_id"] for event in events if event.event == "token"] == engine.tokens[traced]
    assert events[3].fields == {"step": 0, "tokens": 8, "computed_tokens": 0}


def test_an_aborted_traced_request_says_so() -> None:
    events: list[TraceEvent] = []
    engine = Harness(on_event=events.append)
    name = engine.add(range(8), trace=True)
    engine.scheduler.abort(name)
    assert [event.event for event in events] == ["queued", "finished"]
    assert events[-1].fields["reason"] == "abort"
