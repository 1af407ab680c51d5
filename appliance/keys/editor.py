"""Adds, revokes and rotates keys in their file."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from appliance.keys.document import MOST_KEYS, parse, serialize
from appliance.keys.errors import KeysError
from appliance.keys.key_store import KEYS, PEPPER
from appliance.keys.pepper import create_pepper, pepper_of
from appliance.keys.private_files import locked_folder, read_private, write_private
from appliance.keys.record import KeyRecord, PreviousSecret
from appliance.keys.secret import id_of, key_hash, new_id, new_key


class KeyEditor:
    """One file of keys and its pepper. Each method is one change, whole or not at all, and raises `KeysError`.

    Times are kept to the second, in UTC.
    """

    def __init__(self, path: Path, pepper_path: Path) -> None:
        self._path = path
        self._pepper_path = pepper_path

    def records(self) -> tuple[KeyRecord, ...]:
        """All keys; none where there is no file yet."""
        if not self._path.exists():
            return ()
        return parse(read_private(self._path, KEYS), str(self._path))

    def create(self) -> bool:
        """Make the file, without a key in it, and the pepper, where there are none. Says whether it made any."""
        with locked_folder(self._path.parent):
            made = self._make_pepper(self.records())
            if not self._path.exists():
                self._write([])
                made = True
        return made

    def add(self, name: str, now: datetime, **fields: object) -> tuple[KeyRecord, str]:
        """A new key for `name`, and its text. `fields` are those of `KeyRecord`. Makes the pepper with the first."""
        with locked_folder(self._path.parent):
            records = self.records()
            if len(records) >= MOST_KEYS:
                raise KeysError(f"{self._path} has {len(records)} keys, the most it can hold: remove revoked ones.")
            self._make_pepper(records)
            taken = {record.id for record in records}
            key_id = next(key_id for key_id in iter(new_id, "") if key_id not in taken)
            key = new_key(key_id)
            raw = {"id": key_id, "name": name, "hash": self._hash(key), "created": _second(now), **fields}
            try:
                record = msgspec.convert(raw, KeyRecord)
            except msgspec.ValidationError as error:
                raise KeysError(f"Such a key is not possible: {error}.") from error
            self._write([*records, record])
        return record, key

    def revoke(self, which: str, now: datetime) -> KeyRecord:
        """From `now` on the key is refused. One that is revoked stays so since when it was."""
        return self._change(
            which, lambda record: msgspec.structs.replace(record, revoked=record.revoked or _second(now))
        )

    def rotate(self, which: str, now: datetime, grace: timedelta) -> tuple[KeyRecord, str]:
        """A new secret under the same id, and its text. The old one stays valid for `grace`."""
        texts: list[str] = []

        def renew(record: KeyRecord) -> KeyRecord:
            if record.revoked is not None:
                raise KeysError(f"The key {record.id} is revoked and stays so; add another.")
            texts.append(new_key(record.id))
            previous = PreviousSecret(record.hash, _second(now + grace)) if grace else None
            return msgspec.structs.replace(record, hash=self._hash(texts[0]), previous=previous)

        return self._change(which, renew), texts[0]

    def _make_pepper(self, records: tuple[KeyRecord, ...]) -> bool:
        if self._pepper_path.exists():
            return False
        if records:
            raise KeysError(f"{PEPPER} is not at {self._pepper_path}; the keys there need the one they had.")
        create_pepper(self._pepper_path)
        return True

    def _change(self, which: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        with locked_folder(self._path.parent):
            records = list(self.records())
            index = records.index(_find(records, which, self._path))
            records[index] = change(records[index])
            self._write(records)
        return records[index]

    def _write(self, records: list[KeyRecord]) -> None:
        write_private(self._path, serialize(records))

    def _hash(self, key: str) -> str:
        pepper = pepper_of(read_private(self._pepper_path, PEPPER), str(self._pepper_path))
        return key_hash(pepper, key).hex()


def _find(records: list[KeyRecord], which: str, path: Path) -> KeyRecord:
    """By id, by the key itself, or by a name that only one has."""
    key_id = id_of(which) or which
    for record in records:
        if record.id == key_id:
            return record
    named = [record for record in records if record.name == which]
    if len(named) == 1:
        return named[0]
    if named:
        ids = ", ".join(record.id for record in named)
        raise KeysError(f"{path} has several keys named {which!r}: name one by its id ({ids}).")
    raise KeysError(f"{path} has no key with id or name {key_id!r}; `pagebox keys list` shows all.")


def _second(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)
