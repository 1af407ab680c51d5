"""All keys of one reading, ready to check what clients present."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.keys.errors import KeyRefused
from appliance.keys.record import KeyRecord
from appliance.keys.secret import id_of, key_hash

_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Entry:
    record: KeyRecord
    hash: bytes
    previous_hash: bytes  # a random one where there is none, so that both are always compared
    previous_until: float  # seconds of `time.time()`, as the others
    expires: float
    revoked: float


class KeyRing:
    """Checks a key in the time of two comparisons, whichever key it is and whether there is one of that id.

    The hash is computed for every check, in about two microseconds; a table of the keys that were seen would be no
    faster, and hold them in clear.
    """

    def __init__(self, records: Iterable[KeyRecord], pepper: bytes) -> None:
        self._pepper = pepper
        self._entries = {record.id: _entry(record) for record in records}
        self._nobody = secrets.token_bytes(32)

    @property
    def records(self) -> list[KeyRecord]:
        return [entry.record for entry in self._entries.values()]

    def check(self, key: str, now: float | None = None) -> KeyRecord:
        """The record of `key`, the text that a client presents. Raises `KeyRefused`. `now` is `time.time()`."""
        now = time.time() if now is None else now
        presented = key_hash(self._pepper, key)
        entry = self._entries.get(id_of(key) or "")
        current = hmac.compare_digest(presented, self._nobody if entry is None else entry.hash)
        previous = hmac.compare_digest(presented, self._nobody if entry is None else entry.previous_hash)
        if entry is None or not (current or previous):
            raise KeyRefused("The API key is not valid for this server.", "invalid_api_key")
        key_id = entry.record.id
        if entry.revoked <= now:
            raise KeyRefused(f"The API key {key_id} was revoked.", "revoked_api_key", key_id)
        if entry.expires <= now:
            raise KeyRefused(f"The API key {key_id} has expired.", "expired_api_key", key_id)
        if not current and entry.previous_until <= now:
            raise KeyRefused(
                f"The API key {key_id} was replaced by a newer one under the same id.", "replaced_api_key", key_id
            )
        return entry.record


def _entry(record: KeyRecord) -> _Entry:
    previous = record.previous
    return _Entry(
        record=record,
        hash=bytes.fromhex(record.hash),
        previous_hash=secrets.token_bytes(32) if previous is None else bytes.fromhex(previous.hash),
        previous_until=0.0 if previous is None else previous.until.timestamp(),
        expires=_NEVER if record.expires is None else record.expires.timestamp(),
        revoked=_NEVER if record.revoked is None else record.revoked.timestamp(),
    )
