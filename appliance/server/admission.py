"""How much may wait. A place is reserved before a prompt is tokenized, so that overload costs nearly nothing."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from appliance.server.errors import ApiError

Reason = Literal["max_num_queued_reqs", "max_num_queued_tokens"]

RETRY_AFTER_SECONDS = 1


class Ticket:
    """The place of one HTTP request in the queue, given back as first tokens come and when the `with` block ends."""

    def __init__(self, queue: AdmissionQueue) -> None:
        self._queue = queue
        self._sequences = 0
        self._tokens = 0

    def resize(self, sequences: int, tokens: int) -> None:
        """Hold `sequences` and `tokens` instead of what was held so far. Raises a 429 that leaves nothing held."""
        self.release()
        self._queue._reserve(sequences, tokens)
        self._sequences = sequences
        self._tokens = tokens

    def started(self, tokens: int) -> None:
        """One sequence, with `tokens` prompt tokens, has its first token and waits no longer."""
        self._queue._give_back(1, tokens)
        self._sequences -= 1
        self._tokens -= tokens

    def release(self) -> None:
        self._queue._give_back(self._sequences, self._tokens)
        self._sequences = self._tokens = 0

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


class WaitingCounts:
    """Sequences and prompt tokens that wait, of each server process, in memory that all of them see.

    Each writes its own two numbers and reads all, without a lock: requests that reach two processes in the same
    microseconds may both get the last place.
    """

    def __init__(self, memory: bytearray | mmap.mmap, process: int) -> None:
        """`memory` has `bytes_for` all processes, and is zero at first."""
        self._counts = memoryview(memory).cast("q")
        self._own = 2 * process

    @staticmethod
    def bytes_for(processes: int) -> int:
        return 16 * processes

    def add(self, sequences: int, tokens: int) -> None:
        """To what waits in this process."""
        self._counts[self._own] += sequences
        self._counts[self._own + 1] += tokens

    def clear(self) -> None:
        """This process has just begun, or is known to have ended."""
        self._counts[self._own] = self._counts[self._own + 1] = 0

    @property
    def sequences(self) -> int:
        """In all processes."""
        return sum(self._counts[::2])

    @property
    def tokens(self) -> int:
        """In all processes."""
        return sum(self._counts[1::2])


class AdmissionQueue:
    """Counts the sequences that wait for their first token, and their prompt tokens.

    A request that finds the queue empty is always admitted: a single one above the limit could otherwise never run.
    """

    def __init__(
        self,
        max_sequences: int,
        max_tokens: int,
        on_rejection: Callable[[Reason], None],
        waiting: WaitingCounts | None = None,
    ) -> None:
        """The limits hold for all processes that share `waiting`; None: there is no other."""
        self._max_sequences = max_sequences  # 0: no limit, as for tokens
        self._max_tokens = max_tokens
        self._on_rejection = on_rejection
        self._waiting = waiting or WaitingCounts(bytearray(WaitingCounts.bytes_for(1)), 0)

    @property
    def sequences(self) -> int:
        return self._waiting.sequences

    @property
    def tokens(self) -> int:
        return self._waiting.tokens

    def enter(self, sequences: int, tokens: int) -> Ticket:
        """A place for so many sequences with so many prompt tokens in all, or a 429."""
        ticket = Ticket(self)
        ticket.resize(sequences, tokens)
        return ticket

    def _reserve(self, sequences: int, tokens: int) -> None:
        if self.sequences:
            self._check("max_num_queued_reqs", "sequences", self.sequences, sequences, self._max_sequences)
            self._check("max_num_queued_tokens", "prompt tokens", self.tokens, tokens, self._max_tokens)
        self._waiting.add(sequences, tokens)

    def _give_back(self, sequences: int, tokens: int) -> None:
        self._waiting.add(-sequences, -tokens)

    def _check(self, reason: Reason, unit: str, waiting: int, more: int, limit: int) -> None:
        if limit and waiting + more > limit:
            self._on_rejection(reason)
            raise ApiError(
                429,
                f"The queue is full: {waiting} {unit} wait, this request has {more}, and {reason.replace('_', '-')} is "
                f"{limit}. Send it again later.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
                outcome="rejected",
            )
