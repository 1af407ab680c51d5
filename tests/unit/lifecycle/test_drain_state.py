from __future__ import annotations

import pytest

from appliance.lifecycle.drain_state import DrainIsFinal, DrainState


def test_a_drain_begins_and_finishes() -> None:
    state = DrainState()
    assert state.drain(100.0, "a notice")
    assert (state.state, state.deadline, state.reason) == ("draining", 100.0, "a notice")
    state.finish()
    assert state.state == "drained"


def test_asking_twice_changes_nothing_and_a_moved_deadline_is_honoured() -> None:
    state = DrainState()
    state.drain(100.0, "a notice")
    assert not state.drain(100.0, "a notice")
    assert state.drain(80.0, "a notice") and state.deadline == 80.0
    assert state.drain(120.0, "a notice") and state.deadline == 120.0


def test_a_cancelled_drain_serves_again_and_can_drain_again() -> None:
    state = DrainState()
    assert not state.cancel()
    state.drain(100.0, "a notice")
    assert state.cancel()
    assert (state.state, state.deadline, state.reason) == ("serving", None, None)
    state.drain(200.0, "another one")
    state.finish()
    assert not state.drain(300.0, "too late")
    assert state.cancel() and state.state == "serving"


def test_a_signal_bounds_the_deadline_and_is_final() -> None:
    state = DrainState()
    state.drain(100.0, "a notice")
    state.terminate(now=10.0, seconds=60.0, reason="SIGTERM")
    assert (state.deadline, state.reason) == (70.0, "a notice")
    assert not state.drain(200.0, "a notice") or state.deadline == 70.0
    assert state.drain(50.0, "a notice") and state.deadline == 50.0
    with pytest.raises(DrainIsFinal):
        state.cancel()


def test_a_notice_before_the_end_of_the_signals_time_stays() -> None:
    state = DrainState()
    state.drain(30.0, "a notice")
    state.terminate(now=10.0, seconds=60.0, reason="SIGTERM")
    assert state.deadline == 30.0


def test_a_second_signal_hurries() -> None:
    state = DrainState()
    state.terminate(now=10.0, seconds=60.0, reason="SIGTERM")
    assert (state.state, state.deadline) == ("draining", 70.0)
    state.terminate(now=12.0, seconds=60.0, reason="SIGTERM")
    assert state.deadline == 12.0


def test_finishing_what_does_not_drain_is_nothing() -> None:
    state = DrainState()
    state.finish()
    assert state.state == "serving"
