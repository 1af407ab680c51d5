"""API keys: who may call, in constant time, denied by default."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from enum import Enum

from appliance.config import ServerSettings
from appliance.keys.errors import KeyRefused
from appliance.keys.key_store import KeyStore
from appliance.keys.record import KeyRecord
from appliance.server.errors import ApiError


class Access(Enum):
    """Who may call a route."""

    ANYONE = "anyone"  # the probes, and nothing else
    KEY_HOLDER = "key_holder"


class Denied(ApiError):
    """A 401. `key_id` is that of a key that is known and no longer valid, else empty."""

    def __init__(self, message: str, code: str, key_id: str = "") -> None:
        super().__init__(401, message, code=code, headers={"WWW-Authenticate": "Bearer"}, outcome="denied")
        self.key_id = key_id


class ApiKeys:
    """The keys of the setting api-key, which have no limits, and those of the file."""

    def __init__(self, keys: Sequence[str], store: KeyStore | None = None) -> None:
        self._digests = [_digest(key) for key in keys]  # so that all comparisons are of equal length
        self._store = store

    def check(self, authorization: str | None) -> tuple[str, KeyRecord | None]:
        """Whose key is in the header `Authorization: Bearer KEY` (RFC 6750): its id and record in the file, or
        `key-0` for the first one of api-key.

        Where no key is configured everybody may call, with an empty label. Raises `Denied`.
        """
        if not self._digests and self._store is None:
            return "", None
        if not authorization:
            raise Denied("An API key is needed: send the header `Authorization: Bearer KEY`.", "missing_api_key")
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Denied("An API key is sent in the header `Authorization: Bearer KEY`.", "invalid_api_key")
        key = key.strip()
        presented = _digest(key)
        found = None
        for index, digest in enumerate(self._digests):  # no early exit: the time must not tell which key was near
            if hmac.compare_digest(presented, digest):
                found = index
        if found is not None:
            return f"key-{found}", None
        if self._store is None:
            raise Denied("The API key is not valid for this server.", "invalid_api_key")
        try:
            record = self._store.ring.check(key)
        except KeyRefused as error:
            raise Denied(str(error), error.code, error.key_id) from None
        return record.id, record


def open_store(settings: ServerSettings) -> KeyStore | None:
    """The keys of the file, if one is set. May take seconds. Raises `KeysError`."""
    if settings.api_keys_file is None:
        return None
    return KeyStore(settings.api_keys_file, settings.api_keys_pepper, os.environ)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
