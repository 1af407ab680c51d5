"""Keys together with their pepper, from wherever they are, read again when they change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.keys.document import parse
from appliance.keys.pepper import pepper_of, pepper_place
from appliance.keys.record import KeyRecord
from appliance.keys.ring import KeyRing
from appliance.keys.sources import Source, open_source

KEYS, PEPPER = "The file of API keys", "The pepper of the API keys"


@dataclass(frozen=True, slots=True)
class Change:
    """Ids of what another reading brought."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class KeyStore:
    """The newest reading that was without mistake; the first is made by the constructor, which raises `KeysError`."""

    def __init__(self, keys: str, pepper: str | None, environ: Mapping[str, str]) -> None:
        """`keys` and `pepper` are the settings api-keys-file and api-keys-pepper."""
        self._keys: Source = open_source(keys, KEYS)
        self._pepper: Source = open_source(pepper_place(pepper, keys, environ), PEPPER)
        self.seconds = self._keys.seconds  # after which it is worth calling `refresh` again
        self._version: object = None
        self._contents: tuple[bytes, bytes] | None = None
        self.ring = KeyRing((), b"")
        self.refresh()

    @property
    def place(self) -> str:
        """Where the keys are, for people."""
        return self._keys.place

    def refresh(self, *, force: bool = False) -> Change:
        """Look again, and read if something may have changed, or with `force`. May take seconds with AWS.

        Raises `KeysError`, and then keeps the keys that it had; the next call reads again.
        """
        version = (self._keys.version(), self._pepper.version())
        if not force and None not in version and version == self._version:
            return Change([], [], [])
        self._version = None
        contents = self._keys.read(), self._pepper.read()
        if contents == self._contents:
            self._version = version
            return Change([], [], [])
        records = parse(contents[0], self._keys.place)
        pepper = pepper_of(contents[1], self._pepper.place)
        change = _change(self.ring.records, records)
        self.ring = KeyRing(records, pepper)
        self._contents, self._version = contents, version
        return change


def _change(before: list[KeyRecord], after: tuple[KeyRecord, ...]) -> Change:
    old, new = {record.id: record for record in before}, {record.id: record for record in after}
    return Change(
        added=[key_id for key_id in new if key_id not in old],
        removed=[key_id for key_id in old if key_id not in new],
        changed=[key_id for key_id, record in new.items() if key_id in old and record != old[key_id]],
    )
