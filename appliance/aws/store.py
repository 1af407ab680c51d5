"""Which events are known, and which of them were acted on: survives a restart of the watcher."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from appliance.aws.events import Event

log = logging.getLogger(__name__)

FORMAT = 1
POLLS_UNTIL_ENDED = 3  # a single "there is none" between two notices must not cancel a drain


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An event, and what became of it. Lives until its source has stopped announcing it."""

    event: Event
    source: str  # the monitor's name
    boot_id: str  # of the boot in which it was first seen
    first_seen: datetime
    acting_boot: str = ""  # the boot in which more was done than to tell of it; empty: nothing yet
    done: dict[str, str] = {}  # actions that are done, each with what it needs to be undone
    polls_missing: int = 0


class _File(msgspec.Struct, kw_only=True):
    format: int
    records: list[Record]


@dataclass(frozen=True, slots=True)
class Changes:
    """What one look at a source brought."""

    new: tuple[Record, ...] = ()
    moved: tuple[Record, ...] = ()
    ended: tuple[Record, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.new or self.moved or self.ended)


class EventStore:
    """Deduplicates by `Event.identity`. Every change is on disk before it is returned."""

    def __init__(self, file: Path, boot_id: str, now: Callable[[], datetime]) -> None:
        """Reads `file` if it exists. What another boot saw is forgotten, unless it outlives boots. A file that cannot
        be read is put aside, not an error: announcements that still hold will be announced again."""
        self._file = file
        self._boot_id = boot_id
        self._now = now
        self._records = {
            record.event.identity: record
            for record in _read(file)
            if record.boot_id == boot_id or record.event.outlives_boot
        }

    @property
    def records(self) -> Sequence[Record]:
        return tuple(self._records.values())

    def update(self, source: str, events: Iterable[Event], *, can_end: bool = True) -> Changes:
        """`events` are all that `source` announces now; without `can_end`, those it has found since the last call."""
        new, moved, ended = [], [], []
        dirty = False
        seen = set()
        for event in events:
            seen.add(event.identity)
            known = self._records.get(event.identity)
            if known is None:
                record = Record(event=event, source=source, boot_id=self._boot_id, first_seen=self._now())
                self._records[event.identity] = record
                new.append(record)
            else:
                dirty |= known.polls_missing > 0
                known.polls_missing = 0
                if known.event != event:
                    known.event = event
                    moved.append(known)
        missing = [
            record for name, record in self._records.items() if can_end and record.source == source and name not in seen
        ]
        for record in missing:
            record.polls_missing += 1
            dirty = True
            if record.polls_missing >= POLLS_UNTIL_ENDED:
                del self._records[record.event.identity]
                ended.append(record)
        changes = Changes(tuple(new), tuple(moved), tuple(ended))
        if dirty or changes:
            self._save()
        return changes

    def is_past(self, record: Record) -> bool:
        """It was acted on before the machine was rebooted, which was all there was to it."""
        return record.acting_boot not in ("", self._boot_id)

    def mark_acting(self, record: Record) -> None:
        if record.acting_boot != self._boot_id:
            record.acting_boot = self._boot_id
            self._save()

    def mark_done(self, record: Record, action: str, memo: str) -> None:
        """From now on, a restart does not repeat the action."""
        record.done[action] = memo
        self._save()

    def mark_undone(self, record: Record, actions: Iterable[str]) -> None:
        for action in actions:
            record.done.pop(action, None)
        self._save()

    def _save(self) -> None:
        content = msgspec.json.encode(_File(format=FORMAT, records=list(self._records.values())))
        try:
            write_atomically(self._file, content)
        except OSError as error:  # acting on a notice matters more than remembering it
            log.error("The watcher's state could not be written to %s: %s", self._file, error.strerror)


def write_atomically(file: Path, content: bytes, mode: int = 0o600) -> None:
    """Readers see the old content or the new one. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.new")
    with temporary.open("wb") as stream:
        os.fchmod(stream.fileno(), mode)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def boot_id() -> str:
    """Another one after each boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _read(file: Path) -> list[Record]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        log.error("The watcher's state cannot be read from %s: %s", file, error.strerror)
        return []
    try:
        read = msgspec.json.decode(content, type=_File)
    except msgspec.DecodeError as error:
        aside = file.with_name(f"{file.name}.damaged")
        log.error("The watcher's state in %s is damaged (%s); it is put aside as %s", file, error, aside.name)
        with contextlib.suppress(OSError):
            file.replace(aside)
        return []
    return read.records if read.format == FORMAT else []
