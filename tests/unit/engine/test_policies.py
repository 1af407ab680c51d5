from __future__ import annotations

import random

import pytest

from appliance.engine.policies import FairQueue, RequestHeap, WaitingQueue, make_waiting_queue
from appliance.engine.request import Request, RequestStatus
from tests.unit.engine.null_model import CountingModel, Harness, make_request, make_scheduler


class Arrivals:
    """Makes requests in order of arrival."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, prompt_length: int = 10, *, priority: int = 0, key_id: str = "") -> Request:
        added = make_request([1] * prompt_length, priority=priority, key_id=key_id)
        self._count += 1
        return Request.from_wire(added, arrival_index=self._count, eos_token_ids=frozenset(), max_model_len=1000)


def abort(queue: WaitingQueue, request: Request) -> None:
    request.status = RequestStatus.FINISHED
    queue.discard(request)


def pop_all(queue: WaitingQueue) -> list[Request]:
    return [queue.pop() for _ in range(len(queue))]


def preempt(queue: WaitingQueue, request: Request) -> None:
    request.num_preemptions += 1
    queue.push_preempted(request)


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_a_preempted_request_goes_before_those_that_came_after_it(policy: str) -> None:
    queue, new = make_waiting_queue(policy), Arrivals()  # type: ignore[arg-type]
    requests = [new() for _ in range(3)]
    for request in requests:
        queue.push(request)
    first = queue.pop()
    preempt(queue, first)
    assert pop_all(queue) == requests
    assert queue.peek() is None
    with pytest.raises(IndexError):
        queue.pop()


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_aborted_requests_are_never_served_and_do_not_pile_up(policy: str) -> None:
    queue, new = make_waiting_queue(policy), Arrivals()  # type: ignore[arg-type]
    keys = ["a", "b", "c"]
    survivors = []
    generator = random.Random(1)
    for i in range(2000):
        request = new(priority=i % 5, key_id=keys[i % 3])
        queue.push(request)
        survivors.append(request)
        if len(survivors) > 5:
            abort(queue, survivors.pop(generator.randrange(len(survivors))))
    assert len(queue) == 5
    heaps = list(queue._waiting.values()) if isinstance(queue, FairQueue) else [queue._waiting]  # type: ignore[attr-defined]
    assert sum(len(heap._heap) for heap in heaps) <= 2 * 5
    assert set(pop_all(queue)) == set(survivors)


def test_a_heap_of_only_aborted_requests_is_empty() -> None:
    heap, request = RequestHeap(), Arrivals()()
    heap.push((0, 1), request)
    request.status = RequestStatus.FINISHED
    heap.discard_one()
    assert len(heap) == 0
    assert heap.peek() is None


def test_priority_serves_lower_numbers_first_then_arrival() -> None:
    queue, new = make_waiting_queue("priority"), Arrivals()
    late, a, urgent, b = (new(priority=p) for p in (3, 1, -2, 1))
    for request in (late, a, urgent, b):
        queue.push(request)
    assert pop_all(queue) == [urgent, a, b, late]


def test_fair_serves_the_key_that_was_served_least() -> None:
    queue, new = FairQueue(), Arrivals()
    flood = [new(100, key_id="flood") for _ in range(5)]
    for request in flood:
        queue.push(request)
    assert queue.pop() is flood[0]
    light = [new(10, key_id="light") for _ in range(2)]
    for request in light:
        queue.push(request)
    # "light" starts level with "flood", then each pays for what it gets.
    assert (queue.counter("flood"), queue.counter("light")) == (100, 100)
    assert pop_all(queue) == [flood[1], light[0], light[1], *flood[2:]]


def test_fair_charges_output_twice_and_a_resumed_prompt_never_again() -> None:
    queue, new = FairQueue(), Arrivals()
    request = new(10, key_id="a")
    queue.push(request)
    queue.pop()
    queue.charge_output(request, 3)
    preempt(queue, request)
    queue.pop()
    assert queue.counter("a") == 10 + 2 * 3


def test_fair_gives_no_credit_for_staying_away() -> None:
    queue, new = FairQueue(), Arrivals()
    busy = [new(50, key_id="busy") for _ in range(4)]
    for request in busy:
        queue.push(request)
    queue.pop()
    queue.pop()
    queue.push(new(1, key_id="sleeper"))
    assert queue.counter("sleeper") == queue.counter("busy") == 100


def test_fair_lifts_a_newcomer_to_the_last_that_waited_when_nobody_waits() -> None:
    queue, new = FairQueue(), Arrivals()
    request = new(50, key_id="busy")
    queue.push(request)
    queue.pop()
    queue.charge_output(request, 10)
    queue.push(new(1, key_id="newcomer"))
    assert queue.counter("newcomer") == 70


def test_fair_lists_each_key_once_however_often_it_comes_and_goes() -> None:
    queue, new = FairQueue(), Arrivals()
    queue.push(new(1, key_id="steady"))
    for _ in range(100):
        request = new(10, key_id="fickle")
        queue.push(request)
        abort(queue, request)
    assert len(queue._keys_by_counter) == 2
    assert len(queue) == 1


def test_under_fair_two_backlogged_keys_get_equal_service_whatever_their_request_rates() -> None:
    scheduler = make_scheduler(policy="fair", max_num_seqs=4, caching=False)
    model = CountingModel(4)
    key_of = {}
    for i in range(330):
        request = make_request([i] * 10, key_id="many" if i % 11 else "few", max_tokens=5)
        key_of[request.request_id] = request.key_id
        scheduler.add_request(request)
    tokens = {"many": 0, "few": 0}
    while tokens["few"] < 25 * 5:
        output = scheduler.schedule()
        assert output is not None
        for delta in scheduler.update(output, model.execute(output)):
            tokens[key_of[delta.request_id]] += len(delta.token_ids)
    # Of 300 and 30 waiting requests each key got half, within the requests that run at once.
    assert abs(tokens["many"] - tokens["few"]) <= 4 * 5


def test_under_fcfs_a_flood_does_not_delay_those_before_it() -> None:
    engine = Harness(max_num_seqs=2)
    names = [engine.add([i] * 5, max_tokens=2 + i % 3) for i in range(10)]
    engine.run()
    order = list(engine.last)
    assert all(abs(order.index(name) - i) <= 2 for i, name in enumerate(names))
