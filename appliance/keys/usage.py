"""How much each key uses, in memory that several processes share: the limits of a key hold for all of them together.

A key's requests and tokens a minute are two token buckets: each holds a minute's worth, and fills up again evenly. Its
requests at a time are counted by process, so that those of a process that was killed can be taken out again.
"""

from __future__ import annotations

import fcntl
import mmap
import struct
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from appliance.keys.document import MOST_KEYS

SLOTS = 2 * MOST_KEYS  # room for keys that are gone, until they are forgotten

_DIGEST_BYTES = 16
_SLOT = struct.Struct(f"={_DIGEST_BYTES}s5d")  # digest of the id, last use, level and time of both buckets
_COUNT = struct.Struct("=q")
_REQUESTS, _TOKENS = 0, 1  # the buckets


@dataclass(frozen=True, slots=True)
class Level:
    """What is left of a limit a minute: whole units, and the seconds until all of it is there again."""

    limit: int
    remaining: int
    reset_seconds: float


@dataclass(slots=True)
class _Slot:
    index: int
    digest: bytes
    levels: list[float]
    times: list[float]  # of `time.monotonic()`, which all processes of a machine share; 0: never used, so full


class KeyUsage:
    """`memory` has `bytes_for` all processes, and is zero at first. `process` is the number of this one.

    Each call is one short critical section; the lock is the kernel's, which a process that is killed cannot keep.
    """

    def __init__(
        self, memory: bytearray | mmap.mmap, process: int, processes: int, lock: AbstractContextManager[None]
    ) -> None:
        self._memory = memory
        self._process = process
        self._processes = processes
        self._lock = lock
        self._indices: dict[bytes, int] = {}  # where a key was last

    @classmethod
    def alone(cls) -> KeyUsage:
        """For a single process."""
        return cls(bytearray(cls.bytes_for(1)), 0, 1, nullcontext())

    @classmethod
    def shared(cls, path: Path, process: int, processes: int) -> KeyUsage:
        """For one of several processes, by a file that `create` made."""
        file = path.open("r+b", buffering=0)
        return cls(mmap.mmap(file.fileno(), 0), process, processes, _FileLock(file.fileno(), file))

    @classmethod
    def create(cls, path: Path, processes: int) -> None:
        path.write_bytes(bytes(cls.bytes_for(processes)))

    @staticmethod
    def bytes_for(processes: int) -> int:
        return SLOTS * (_SLOT.size + processes * _COUNT.size)

    def take_request(self, key_id: str, per_minute: int | None, at_a_time: int | None) -> RequestPlace:
        """One request, if both limits allow it; it is then to be ended by `end_request`."""
        with self._lock:
            slot = self._slot(key_id)
            running = self._running(slot.index)
            if at_a_time is not None and running >= at_a_time:
                level = None if per_minute is None else self._level(slot, _REQUESTS, per_minute)
                return RequestPlace(level, running, 0.0, admitted=False)
            wait, level = 0.0, None
            if per_minute is not None:
                wait = self._take(slot, _REQUESTS, per_minute, 1.0)
                level = self._level(slot, _REQUESTS, per_minute)
            if not wait:
                self._add_running(slot.index, 1)
            self._write(slot)
            return RequestPlace(level, running, wait, admitted=not wait)

    def end_request(self, key_id: str) -> None:
        with self._lock:
            slot = self._slot(key_id)
            self._add_running(slot.index, -1)
            self._write(slot)

    def take_tokens(self, key_id: str, per_minute: int, tokens: int) -> tuple[float, Level]:
        """The seconds until so many tokens are there, 0 if they were and are taken; and what is left.

        `per_minute` is at least `tokens`, or they never come.
        """
        with self._lock:
            slot = self._slot(key_id)
            wait = self._take(slot, _TOKENS, per_minute, float(tokens))
            self._write(slot)
            return wait, self._level(slot, _TOKENS, per_minute)

    def charge_tokens(self, key_id: str, per_minute: int, tokens: int) -> None:
        """Tokens that were used whether they were there or not: what is missing delays the requests that follow.

        Less than 0 `tokens` are given back.
        """
        with self._lock:
            slot = self._slot(key_id)
            self._fill(slot, _TOKENS, per_minute)
            slot.levels[_TOKENS] = min(float(per_minute), slot.levels[_TOKENS] - tokens)
            self._write(slot)

    def tokens_left(self, key_id: str, per_minute: int) -> Level:
        with self._lock:
            return self._level(self._slot(key_id), _TOKENS, per_minute)

    def forget_process(self, process: int) -> None:
        """That process runs nothing any more."""
        start = self._counts_of(process)
        with self._lock:
            self._memory[start : start + SLOTS * _COUNT.size] = bytes(SLOTS * _COUNT.size)

    # ---- buckets; the lock is held --------------------------------------------------------------------------------

    def _take(self, slot: _Slot, bucket: int, per_minute: int, amount: float) -> float:
        self._fill(slot, bucket, per_minute)
        missing = amount - slot.levels[bucket]
        if missing > 0:
            return missing * 60 / per_minute
        slot.levels[bucket] -= amount
        return 0.0

    def _fill(self, slot: _Slot, bucket: int, per_minute: int) -> None:
        now = time.monotonic()
        if not slot.times[bucket]:
            slot.levels[bucket] = float(per_minute)
        gained = (now - slot.times[bucket]) * per_minute / 60
        slot.levels[bucket] = min(float(per_minute), slot.levels[bucket] + gained)
        slot.times[bucket] = now

    def _level(self, slot: _Slot, bucket: int, per_minute: int) -> Level:
        self._fill(slot, bucket, per_minute)
        level = slot.levels[bucket]
        return Level(per_minute, max(0, int(level)), max(0.0, per_minute - level) * 60 / per_minute)

    # ---- slots; the lock is held ----------------------------------------------------------------------------------

    def _slot(self, key_id: str) -> _Slot:
        digest = blake2b(key_id.encode(), digest_size=_DIGEST_BYTES).digest()
        index = self._indices.get(digest)
        if index is None or self._digest_at(index) != digest:
            index = self._find(digest)
            self._indices[digest] = index
        found, _, requests, requests_at, tokens, tokens_at = _SLOT.unpack_from(self._memory, index * _SLOT.size)
        if found != digest:
            return _Slot(index, digest, [0.0, 0.0], [0.0, 0.0])
        return _Slot(index, digest, [requests, tokens], [requests_at, tokens_at])

    def _write(self, slot: _Slot) -> None:
        _SLOT.pack_into(
            self._memory,
            slot.index * _SLOT.size,
            *(slot.digest, time.monotonic()),
            *(slot.levels[_REQUESTS], slot.times[_REQUESTS], slot.levels[_TOKENS], slot.times[_TOKENS]),
        )

    def _find(self, digest: bytes) -> int:
        """The slot of `digest`, or the one that it may have: an empty one, or that of the key least recently used."""
        oldest, oldest_use = 0, float("inf")
        for index in range(SLOTS):
            found, used, *_ = _SLOT.unpack_from(self._memory, index * _SLOT.size)
            if found == digest:
                return index
            if used < oldest_use and (not used or not self._running(index)):
                oldest, oldest_use = index, used
            if not used:  # slots are taken from the front
                break
        return oldest

    def _digest_at(self, index: int) -> bytes:
        start = index * _SLOT.size
        return bytes(self._memory[start : start + _DIGEST_BYTES])

    def _running(self, index: int) -> int:
        """In all processes."""
        counts = (self._counts_of(process) + index * _COUNT.size for process in range(self._processes))
        return sum(_COUNT.unpack_from(self._memory, place)[0] for place in counts)

    def _add_running(self, index: int, more: int) -> None:
        place = self._counts_of(self._process) + index * _COUNT.size
        _COUNT.pack_into(self._memory, place, max(0, _COUNT.unpack_from(self._memory, place)[0] + more))

    @staticmethod
    def _counts_of(process: int) -> int:
        return SLOTS * (_SLOT.size + process * _COUNT.size)


@dataclass(frozen=True, slots=True)
class RequestPlace:
    """What came of asking for a request: `wait` is the seconds until its rate would allow it."""

    level: Level | None  # of the rate, if there is one
    running: int  # before this one
    wait: float
    admitted: bool


class _FileLock:
    """A lock of the whole file between processes. The file stays open: closing any descriptor of it would unlock."""

    def __init__(self, descriptor: int, file: object) -> None:
        self._descriptor = descriptor
        self._file = file

    def __enter__(self) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
