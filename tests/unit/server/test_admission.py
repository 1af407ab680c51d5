"""The queue counts exactly, whatever happens in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.server.admission import AdmissionQueue, Reason
from appliance.server.errors import ApiError

COUNT = st.integers(1, 6)
TOKENS = st.integers(0, 40)


def queue_of(sequences: int, tokens: int) -> tuple[AdmissionQueue, list[Reason]]:
    rejections: list[Reason] = []
    return AdmissionQueue(sequences, tokens, rejections.append), rejections


@given(st.lists(st.tuples(COUNT, TOKENS, st.integers(0, 6), st.booleans())), st.integers(1, 12), st.integers(1, 80))
def test_limits_hold_and_everything_is_given_back(
    requests: list[tuple[int, int, int, bool]], max_sequences: int, max_tokens: int
) -> None:
    queue, _ = queue_of(max_sequences, max_tokens)
    tickets = []
    for sequences, tokens, started, leaves in requests:
        was_empty = queue.sequences == 0
        before = (queue.sequences, queue.tokens)
        try:
            ticket = queue.enter(sequences, sequences * tokens)
        except ApiError:
            assert not was_empty
            assert (queue.sequences, queue.tokens) == before
            continue
        assert was_empty or (queue.sequences <= max_sequences and queue.tokens <= max_tokens)
        for _ in range(min(started, sequences)):
            ticket.started(tokens)
        if leaves:
            with ticket:
                pass
        else:
            tickets.append(ticket)
    for ticket in tickets:
        ticket.release()
    assert (queue.sequences, queue.tokens) == (0, 0)


def test_a_ticket_that_grows_beyond_the_limit_leaves_nothing_behind() -> None:
    queue, rejections = queue_of(10, 100)
    first = queue.enter(1, 50)
    second = queue.enter(1, 10)
    with pytest.raises(ApiError) as caught:
        second.resize(1, 60)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert (queue.sequences, queue.tokens) == (1, 50)
    assert rejections == ["max_num_queued_tokens"]
    first.release()
    assert (queue.sequences, queue.tokens) == (0, 0)


def test_zero_means_no_limit() -> None:
    queue, rejections = queue_of(0, 0)
    for _ in range(100):
        queue.enter(1000, 1_000_000)
    assert rejections == []
