"""Drains under load, in simulated time, against an oracle that knows every length."""

from __future__ import annotations

import pytest

from tests.support.drain_simulation import NOTICE_SECONDS, SCENARIOS, at_notice, could_finish, run

MIXED, CROWDED, KNOWN = SCENARIOS


@pytest.mark.parametrize("seed", [1, 2])
def test_of_the_requests_that_could_finish_98_percent_do_and_no_stream_breaks(seed: int) -> None:
    world = at_notice(MIXED, seed)
    could = could_finish(world, NOTICE_SECONDS)
    outcome = run(world, "drain", NOTICE_SECONDS)
    assert len(could & outcome.finished) >= 0.98 * len(could)
    assert not outcome.cut_off
    assert outcome.told, "the load has no request that cannot finish"


def test_what_is_admitted_after_the_notice_finishes() -> None:
    outcome = run(at_notice(MIXED), "drain", NOTICE_SECONDS)
    assert outcome.admitted_later > 0
    assert outcome.finished_later == outcome.admitted_later


def test_a_full_queue_admits_nothing_and_still_breaks_no_stream() -> None:
    outcome = run(at_notice(CROWDED), "drain", NOTICE_SECONDS)
    assert outcome.refused > 0
    assert outcome.admitted_later == 0
    assert not outcome.cut_off


def test_shedding_at_once_lets_more_finish_than_waiting_does_and_tells_the_others_in_time() -> None:
    world = at_notice(KNOWN)
    drain, wait = run(world, "drain", NOTICE_SECONDS), run(world, "wait", NOTICE_SECONDS)
    assert len(drain.finished) > len(wait.finished)
    assert wait.cut_off
    assert not drain.cut_off
    assert drain.seconds_until_told < 0.1 * NOTICE_SECONDS
