"""What each key uses, counted by one process and by several."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from appliance.keys import usage as module
from appliance.keys.usage import KeyUsage


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def pair(tmp_path: Path) -> tuple[KeyUsage, KeyUsage]:
    """Of two processes. Both are this one here, whose file locks do not exclude each other."""
    file = tmp_path / "usage"
    KeyUsage.create(file, 2)
    return KeyUsage.shared(file, 0, 2), KeyUsage.shared(file, 1, 2)


def test_a_minutes_requests_may_come_at_once_and_then_evenly(clock: Clock) -> None:
    usage = KeyUsage.alone()
    places = [usage.take_request("a", 60, None) for _ in range(61)]
    assert [place.admitted for place in places] == [True] * 60 + [False]
    levels = [place.level.remaining for place in places if place.level is not None]
    assert levels[:2] == [59, 58] and levels[-2:] == [0, 0]
    assert places[60].wait == 1.0
    assert places[60].level is not None and places[60].level.reset_seconds == 60
    clock.now += 1.0
    assert usage.take_request("a", 60, None).admitted
    assert not usage.take_request("a", 60, None).admitted
    clock.now += 3600
    assert [usage.take_request("a", 60, None).admitted for _ in range(61)].count(True) == 60


def test_keys_do_not_count_for_each_other(clock: Clock) -> None:
    usage = KeyUsage.alone()
    assert usage.take_request("a", 1, 1).admitted
    assert usage.take_request("b", 1, 1).admitted
    assert not usage.take_request("a", 1, 1).admitted


def test_requests_at_a_time_end(clock: Clock) -> None:
    usage = KeyUsage.alone()
    assert [usage.take_request("a", None, 2).admitted for _ in range(3)] == [True, True, False]
    usage.end_request("a")
    assert usage.take_request("a", None, 2).admitted
    assert usage.take_request("a", None, 2).running == 2


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    usage = KeyUsage.alone()
    usage.take_request("a", 10, 1)
    for _ in range(20):
        refused = usage.take_request("a", 10, 1)
        assert not refused.admitted and refused.level is not None and refused.level.remaining == 9


def test_tokens_are_taken_given_back_and_owed(clock: Clock) -> None:
    usage = KeyUsage.alone()
    wait, level = usage.take_tokens("a", 600, 400)
    assert (wait, level.limit, level.remaining, level.reset_seconds) == (0.0, 600, 200, 40.0)
    wait, level = usage.take_tokens("a", 600, 300)
    assert (wait, level.remaining) == (10.0, 200)
    usage.charge_tokens("a", 600, -100)
    assert usage.tokens_left("a", 600).remaining == 300
    usage.charge_tokens("a", 600, 900)
    assert usage.tokens_left("a", 600).remaining == 0
    clock.now += 60
    assert usage.take_tokens("a", 600, 1)[0] == pytest.approx(0.1)
    usage.charge_tokens("a", 600, -5000)
    assert usage.tokens_left("a", 600).remaining == 600


def test_a_limit_that_changes_holds_at_once(clock: Clock) -> None:
    usage = KeyUsage.alone()
    assert usage.take_tokens("a", 1000, 10)[1].remaining == 990
    assert usage.tokens_left("a", 100).remaining == 100
    usage.charge_tokens("a", 100, 100)
    clock.now += 6
    assert usage.take_tokens("a", 1000, 100)[0] == 0.0


def test_limits_hold_for_all_processes_together(clock: Clock, tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    assert first.take_request("a", 3, 2).admitted and second.take_request("a", 3, 2).admitted
    assert not first.take_request("a", 3, 2).admitted  # two at a time
    second.end_request("a")
    assert first.take_request("a", 3, 2).admitted
    first.end_request("a")
    assert second.take_request("a", 3, 2).wait == 20.0  # three a minute
    first.take_tokens("a", 100, 60)
    assert second.tokens_left("a", 100).remaining == 40


def test_what_a_dead_process_ran_is_forgotten(clock: Clock, tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    first.take_request("a", None, 1)
    assert not second.take_request("a", None, 1).admitted
    second.forget_process(0)
    assert second.take_request("a", None, 1).admitted


def test_the_key_that_was_used_least_recently_makes_room_and_a_running_one_never(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOTS", 3)
    first, second = pair(tmp_path)
    for key in ("a", "b", "c"):
        clock.now += 1
        first.take_request(key, 10, None)
        if key != "a":
            first.end_request(key)
    clock.now += 1
    second.take_request("d", 10, None)  # b's place
    assert first.take_request("a", 10, 1).running == 1
    level = first.take_request("b", 10, None).level  # c's place; begins anew
    assert level is not None and level.remaining == 9
    level = second.take_request("d", 10, None).level
    assert level is not None and level.remaining == 8


def _take_many(file: Path, process: int) -> None:
    usage = KeyUsage.shared(file, process, 3)
    for _ in range(300):
        usage.take_request("a", 2**30, None)
        usage.charge_tokens("a", 2**30, 1)


def test_processes_at_the_same_time_lose_no_count(tmp_path: Path) -> None:
    file = tmp_path / "usage"
    KeyUsage.create(file, 3)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_take_many, args=(file, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert KeyUsage.shared(file, 2, 3).take_request("a", None, None).running == 600


def _die_with_the_lock(file: Path) -> None:
    usage = KeyUsage.shared(file, 0, 2)
    usage._lock.__enter__()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_keeps_no_lock(tmp_path: Path) -> None:
    file = tmp_path / "usage"
    KeyUsage.create(file, 2)
    worker = multiprocessing.get_context("fork").Process(target=_die_with_the_lock, args=(file,))
    worker.start()
    worker.join()
    assert KeyUsage.shared(file, 1, 2).take_request("a", 1, 1).admitted
