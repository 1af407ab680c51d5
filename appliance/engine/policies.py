"""Who is served next, and who gives way: the queue of waiting requests under each scheduling policy.

A running request's `rank` says how late it is preempted: the greatest rank gives way first. Ranks are comparable among
requests of one queue at one moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Literal, Protocol

from appliance.engine.request import Request, RequestStatus

PolicyName = Literal["fcfs", "priority", "fair"]
Rank = tuple[float, int]

# The weights of the fairness paper: generating a token costs about twice what reading one does.
_PROMPT_TOKEN_COST = 1
_OUTPUT_TOKEN_COST = 2


class WaitingQueue(Protocol):
    """Operations cost O(log n) at most, amortized."""

    def __len__(self) -> int: ...

    def push(self, request: Request) -> None:
        """A new request."""

    def push_preempted(self, request: Request) -> None:
        """A request that ran before: it resumes its old place, ahead of all that came after it."""

    def peek(self) -> Request | None:
        """The request to serve next."""

    def pop(self) -> Request:
        """Remove and return it: it is admitted."""

    def discard(self, request: Request) -> None:
        """`request` waits here, and its status was just set to FINISHED."""

    def charge_output(self, request: Request, num_tokens: int) -> None:
        """`request` generated so many tokens."""

    def rank(self, request: Request) -> Rank: ...


def make_waiting_queue(policy: PolicyName) -> WaitingQueue:
    match policy:
        case "fcfs":
            return RankedQueue(arrival_rank)
        case "priority":
            return RankedQueue(priority_rank)
        case "fair":
            return FairQueue()
    raise ValueError(f"scheduling_policy must be fcfs, priority or fair, got {policy!r}")


class RequestHeap:
    """Waiting requests, smallest rank first. Discarded ones are dropped when they surface or are half of all."""

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Request]] = []  # ranks are unique, so requests are never compared
        self._num_discarded = 0

    def __len__(self) -> int:
        return len(self._heap) - self._num_discarded

    def push(self, rank: Rank, request: Request) -> None:
        heapq.heappush(self._heap, (rank, request))

    def peek(self) -> Request | None:
        while self._heap:
            request = self._heap[0][1]
            if request.status is not RequestStatus.FINISHED:
                return request
            heapq.heappop(self._heap)
            self._num_discarded -= 1
        return None

    def pop(self) -> Request:
        if self.peek() is None:
            raise IndexError("no request waits")
        return heapq.heappop(self._heap)[1]

    def discard_one(self) -> None:
        self._num_discarded += 1
        if self._num_discarded * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1].status is not RequestStatus.FINISHED]
            heapq.heapify(self._heap)
            self._num_discarded = 0


def arrival_rank(request: Request) -> Rank:
    """fcfs: in order of arrival. The oldest request is never preempted, so each gets its turn."""
    return (0, request.arrival_index)


def priority_rank(request: Request) -> Rank:
    """priority: lower numbers first, then in order of arrival. Steady urgent requests starve the others."""
    return (request.priority, request.arrival_index)


class RankedQueue:
    """A queue whose order never changes while a request waits."""

    def __init__(self, rank: Callable[[Request], Rank]) -> None:
        self.rank = rank
        self._waiting = RequestHeap()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, request: Request) -> None:
        self._waiting.push(self.rank(request), request)

    def push_preempted(self, request: Request) -> None:
        self._waiting.push(self.rank(request), request)

    def peek(self) -> Request | None:
        return self._waiting.peek()

    def pop(self) -> Request:
        return self._waiting.pop()

    def discard(self, request: Request) -> None:
        self._waiting.discard_one()

    def charge_output(self, request: Request, num_tokens: int) -> None:
        pass


class FairQueue:
    """Virtual token counters, one a key: the waiting key that was served least goes first.

    Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), algorithm 2. A key pays for the prompt when a
    request of it is admitted for the first time, and for output as it is generated. A key that had nothing waiting
    is lifted to the least counter of those that have, so that no one saves up credit by staying away.

    Counters only grow, so the ones in `_keys_by_counter` are lower bounds: an entry is brought up to date when it
    surfaces. Counters of keys that went away are kept, being what they owe; there is one a key in the key file.
    """

    def __init__(self) -> None:
        self._counters: dict[str, int] = {}
        self._waiting: dict[str, RequestHeap] = {}  # no heap is without a waiting request
        self._keys_by_counter: list[tuple[int, str]] = []  # heap, an entry per key of _listed
        self._listed: set[str] = set()  # the keys of _waiting, and some that have nothing waiting any more
        self._num_waiting = 0
        self._last_waiting_key = ""  # the key that was the last to leave _waiting

    def __len__(self) -> int:
        return self._num_waiting

    def counter(self, key_id: str) -> int:
        return self._counters.get(key_id, 0)

    def push(self, request: Request) -> None:
        key = request.key_id
        if key not in self._waiting:
            least = self._least_waiting_key()
            floor = self.counter(self._last_waiting_key if least is None else least)
            self._counters[key] = max(self.counter(key), floor)
        self._enqueue(request)

    def push_preempted(self, request: Request) -> None:
        self._enqueue(request)

    def peek(self) -> Request | None:
        key = self._least_waiting_key()
        return None if key is None else self._waiting[key].peek()

    def pop(self) -> Request:
        key = self._least_waiting_key()
        if key is None:
            raise IndexError("no request waits")
        request = self._waiting[key].pop()
        if request.num_preemptions == 0:
            self._counters[key] += _PROMPT_TOKEN_COST * request.num_prompt_tokens
        self._left(key)
        return request

    def discard(self, request: Request) -> None:
        self._waiting[request.key_id].discard_one()
        self._left(request.key_id)

    def charge_output(self, request: Request, num_tokens: int) -> None:
        self._counters[request.key_id] += _OUTPUT_TOKEN_COST * num_tokens

    def rank(self, request: Request) -> Rank:
        return (self._counters[request.key_id], request.arrival_index)

    def _enqueue(self, request: Request) -> None:
        key = request.key_id
        heap = self._waiting.get(key)
        if heap is None:
            heap = self._waiting[key] = RequestHeap()
            if key not in self._listed:
                self._listed.add(key)
                heapq.heappush(self._keys_by_counter, (self._counters[key], key))
        heap.push((0, request.arrival_index), request)
        self._num_waiting += 1

    def _left(self, key: str) -> None:
        """A request of `key` waits no longer."""
        self._num_waiting -= 1
        if len(self._waiting[key]) == 0:
            del self._waiting[key]
            self._last_waiting_key = key

    def _least_waiting_key(self) -> str | None:
        heap = self._keys_by_counter
        while heap:
            counter, key = heap[0]
            if key not in self._waiting:
                heapq.heappop(heap)
                self._listed.discard(key)
            elif counter < self._counters[key]:
                heapq.heapreplace(heap, (self._counters[key], key))
            else:
                return key
        return None
