from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from appliance.lifecycle.drain_forecast import Load, Machine, forecast
from appliance.lifecycle.drain_planner import Outlook, Pending, outlook, to_shed
from appliance.lifecycle.output_lengths import OutputLengths
from appliance.lifecycle.step_pace import StepPace, StepTimes

PACE = StepPace(base=0.02, per_sequence=0.001, per_prompt_token=0.0001)
NOTHING_KNOWN = OutputLengths([])


def machine(max_num_seqs: int = 4, kv_cache_tokens: int = 100_000) -> Machine:
    return Machine(PACE, max_num_seqs, 512, kv_cache_tokens)


def running(name: str, left: int, *, most: int | None = None) -> Pending:
    """Generates exactly `left` tokens, or up to `most`."""
    return Pending(name, 1, 10, 110, left if most is None else 1, most or left, True)


def waiting(name: str, left: int, *, prompt: int = 100, most: int | None = None) -> Pending:
    return Pending(name, prompt, 0, prompt, left if most is None else 1, most or left, False)


def test_one_that_decodes_alone_ends_after_its_tokens() -> None:
    times = forecast([Load(1, 100, 50, True)], machine())
    assert times[0].end == pytest.approx(50 * 0.021)


def test_a_batch_becomes_faster_as_its_members_end() -> None:
    times = forecast([Load(1, 100, 10, True), Load(1, 100, 30, True)], machine())
    assert times[0].end == pytest.approx(10 * 0.022)
    assert times[1].end == pytest.approx(10 * 0.022 + 20 * 0.021)


def test_one_without_a_place_waits_for_the_first_that_ends() -> None:
    loads = [Load(1, 100, 10 * (i + 1), True) for i in range(4)] + [Load(100, 100, 10, False)]
    times = forecast(loads, machine())
    assert times[4].first_token > times[0].end
    assert times[4].first_token < times[1].end


def test_one_that_does_not_fit_into_memory_waits_though_rows_are_free() -> None:
    loads = [Load(1, 500, 20, True), Load(600, 600, 10, False)]
    assert forecast(loads, machine(kv_cache_tokens=1000))[1].first_token > 20 * 0.02
    assert forecast(loads, machine())[1].first_token < 20 * 0.02


def test_prompts_are_computed_beside_what_decodes() -> None:
    [_, second] = forecast([Load(1, 100, 1000, True), Load(5110, 5110, 1, True)], machine())
    assert second.first_token == pytest.approx(10 * PACE.seconds(1, 511) + PACE.seconds(1))


def test_what_can_end_stays_and_what_cannot_is_shed_at_once() -> None:
    pending = [running("short", 100), running("long", 5000)]
    assert to_shed(pending, machine(), NOTHING_KNOWN, 30.0) == ["long"]


def test_what_may_end_early_stays() -> None:
    assert to_shed([running("maybe", 1, most=5000)], machine(), NOTHING_KNOWN, 30.0) == []


def test_at_the_deadline_everything_is_shed() -> None:
    assert to_shed([running("a", 1), waiting("b", 1)], machine(), NOTHING_KNOWN, 0.0) == ["a", "b"]


def test_a_long_one_gives_its_place_to_several_short_ones() -> None:
    pending = [running("long", 900), *(waiting(f"short-{i}", 200) for i in range(4))]
    assert to_shed(pending, machine(max_num_seqs=1), NOTHING_KNOWN, 22.0) == ["long"]


def test_nothing_is_shed_while_everything_can_end() -> None:
    pending = [running("long", 900), *(waiting(f"short-{i}", 20) for i in range(4))]
    assert to_shed(pending, machine(max_num_seqs=1), NOTHING_KNOWN, 60.0) == []


def test_a_new_request_starts_behind_those_that_wait_and_is_admitted_if_it_ends_in_time() -> None:
    idle = outlook([], machine(), NOTHING_KNOWN)
    busy = outlook([running("a", 500), waiting("b", 500)], machine(max_num_seqs=1), NOTHING_KNOWN)
    assert idle.start < 0.1
    assert busy.start > 20.0
    assert idle.fits(100, 50, 50, seconds_left=5.0)
    assert not busy.fits(100, 50, 50, seconds_left=5.0)
    assert not idle.fits(100, 500, 500, seconds_left=5.0)


def test_the_typical_length_stands_in_for_a_large_limit() -> None:
    one = Outlook(start=0.0, seconds_per_prompt_token=0.0, seconds_per_token=0.02, typical_tokens=100)
    assert one.seconds(10, 1, 100_000) == pytest.approx(2.0)
    assert one.seconds(10, 1, 10) == pytest.approx(0.2)
    assert one.seconds(10, 500, 500) == pytest.approx(10.0)


def test_lengths_follow_what_was_seen() -> None:
    lengths = OutputLengths([(n, True) for n in range(1, 1001)])
    assert lengths.chance(0, 500) == pytest.approx(0.5, abs=0.01)
    assert lengths.chance(500, 250) == pytest.approx(0.5, abs=0.01)
    assert lengths.expected(0, 100_000) == pytest.approx(500, rel=0.02)
    assert lengths.quantile(0.9) == pytest.approx(900, rel=0.01)


def test_an_output_that_a_limit_ended_counts_as_longer_than_the_limit() -> None:
    seen = OutputLengths([(50, True)] * 50 + [(100, False)] * 50)
    assert 0.5 < seen.chance(0, 100) < 0.6  # half of them, and a little for what comes behind the last known end
    assert seen.expected(0, 100_000) > 150


@pytest.mark.parametrize("known", [[], [(10, True)], [(10, False)], [(10, True), (10, True), (500, False)]])
def test_chances_and_expectations_grow_with_what_is_allowed(known: list[tuple[int, bool]]) -> None:
    lengths = OutputLengths(known)
    for length in (0, 5, 10, 400, 5000):
        chances = [lengths.chance(length, more) for more in (0, 1, 10, 100, 10_000)]
        assert chances == sorted(chances)
        assert 0.0 <= chances[0] <= chances[-1] < 1.0
        expected = [lengths.expected(length, most) for most in (1, 10, 100, 10_000)]
        assert expected == sorted(expected)
        assert 0.0 < expected[0] <= 1.0


def steps(generator: random.Random, draw: Callable[[], tuple[int, int]], count: int = 200) -> StepTimes:
    times = StepTimes()
    for _ in range(count):
        sequences, prompt_tokens = draw()
        times.add(sequences, prompt_tokens, PACE.seconds(sequences, prompt_tokens) * generator.uniform(0.95, 1.05))
    return times


def test_a_pace_is_found_in_noisy_steps() -> None:
    generator = random.Random(3)
    times = steps(generator, lambda: (generator.randint(1, 60), generator.choice((0, 0, generator.randint(1, 500)))))
    times.add(10, 0, 30.0)  # a kernel was compiled
    pace = times.pace()
    assert pace is not None
    for sequences, prompt_tokens in ((1, 0), (60, 0), (30, 400)):
        expected = PACE.seconds(sequences, prompt_tokens)
        assert pace.seconds(sequences, prompt_tokens) == pytest.approx(expected, rel=0.1)


def test_steps_that_never_varied_still_say_how_long_such_a_step_takes() -> None:
    pace = steps(random.Random(4), lambda: (8, 0)).pace()
    assert pace is not None
    assert pace.seconds(8) == pytest.approx(PACE.seconds(8), rel=0.02)
    assert 0.0 <= pace.seconds(1) <= pace.seconds(8) * 1.001


def test_no_step_no_pace() -> None:
    assert StepTimes().pace() is None
