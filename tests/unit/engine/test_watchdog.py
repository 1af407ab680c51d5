from __future__ import annotations

import pytest

from appliance.engine.watchdog import (
    DECODE_STALL_SECONDS,
    HEARTBEAT_STALL_SECONDS,
    LONGEST_STALL_SECONDS,
    PREFILL_STALL_SECONDS,
    SLOWER_THAN_LATELY,
    WINDOW_SECONDS,
    Watchdog,
)


class Time:
    """A server whose loop ticks each second, its watchdog, and time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watchdog = Watchdog(1.0, lambda: self.now)

    def passes(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            self.watchdog.tick()
            self.watchdog.pinged()

    def stalled(self, *, has_work: bool, prefilling: bool = False) -> bool:
        return self.watchdog.stalled(has_work=has_work, prefilling=lambda: prefilling)


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_ping_that_stays_unanswered_is_a_stall_and_its_answer_ends_it(time: Time) -> None:
    time.passes(HEARTBEAT_STALL_SECONDS)
    assert not time.stalled(has_work=False)
    time.passes(1)
    assert time.stalled(has_work=False)
    time.watchdog.heard(stepped=False, had_work=False)
    assert not time.stalled(has_work=False)
    assert time.watchdog.silence is None


def test_answers_without_steps_are_a_stall_when_there_is_work(time: Time) -> None:
    time.watchdog.work_began()
    for _ in range(int(DECODE_STALL_SECONDS)):
        assert not time.stalled(has_work=True)
        time.passes(1)
        time.watchdog.heard(stepped=False, had_work=True)
    assert time.stalled(has_work=True)


def test_a_prefill_may_take_longer_than_a_decode(time: Time) -> None:
    time.passes(DECODE_STALL_SECONDS)
    assert time.stalled(has_work=True)
    assert not time.stalled(has_work=True, prefilling=True)
    time.passes(PREFILL_STALL_SECONDS - DECODE_STALL_SECONDS)
    assert time.stalled(has_work=True, prefilling=True)


@pytest.mark.parametrize("had_work", [True, False])  # False: the requests of that step have been given up
def test_long_steps_lately_leave_room_for_longer_ones_and_are_forgotten(time: Time, had_work: bool) -> None:
    time.passes(10)
    time.watchdog.heard(stepped=True, had_work=had_work)
    allowed = SLOWER_THAN_LATELY * (10 if had_work else 9)  # the first ping was sent after a second
    time.passes(allowed - 1)
    assert not time.stalled(has_work=True)
    time.passes(1)
    assert time.stalled(has_work=True)
    for _ in range(2 * int(WINDOW_SECONDS) + 2):
        time.watchdog.heard(stepped=False, had_work=False)
        time.passes(1)
    time.watchdog.work_began()
    time.passes(DECODE_STALL_SECONDS)
    assert time.stalled(has_work=True)


def test_a_step_that_hung_does_not_switch_the_watchdog_off(time: Time) -> None:
    time.passes(1000)
    time.watchdog.heard(stepped=True, had_work=True)
    time.passes(LONGEST_STALL_SECONDS)
    assert time.stalled(has_work=True)


@pytest.mark.parametrize("has_work", [True, False])
def test_time_in_which_the_server_was_suspended_is_not_the_engines(time: Time, has_work: bool) -> None:
    time.passes(3)  # a ping is unanswered
    time.now += 500
    assert not time.stalled(has_work=has_work)
    time.watchdog.tick()
    assert not time.stalled(has_work=has_work)
    time.passes(DECODE_STALL_SECONDS)
    assert time.stalled(has_work=has_work)


def test_another_engine_begins_without_a_past(time: Time) -> None:
    time.passes(40)
    time.watchdog.heard(stepped=True, had_work=True)
    time.passes(40)
    time.watchdog.reset()
    assert time.watchdog.step_age == 0
    assert time.watchdog.silence is None
    time.passes(DECODE_STALL_SECONDS)
    assert time.stalled(has_work=True)
