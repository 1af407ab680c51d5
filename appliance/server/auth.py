"""API keys: who may call, in constant time, denied by default."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from enum import Enum

from appliance.server.errors import ApiError


class Access(Enum):
    """Who may call a route."""

    ANYONE = "anyone"  # the probes, and nothing else
    KEY_HOLDER = "key_holder"


class ApiKeys:
    """The keys of the settings. Only their SHA-256 digests are kept, so that all comparisons are of equal length."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> str:
        """The label of the key in the header `Authorization: Bearer KEY` (RFC 6750), `key-0` for the first one.

        Without any configured key everybody may call, with an empty label. Raises a 401.
        """
        if not self._digests:
            return ""
        if not authorization:
            raise _denied("An API key is needed: send the header `Authorization: Bearer KEY`.", "missing_api_key")
        scheme, _, key = authorization.partition(" ")
        presented = _digest(key.strip())
        found = None
        for index, digest in enumerate(self._digests):  # no early exit: the time must not tell which key was near
            if hmac.compare_digest(presented, digest):
                found = index
        if scheme.lower() != "bearer" or found is None:
            raise _denied("The API key is not valid for this server.", "invalid_api_key")
        return f"key-{found}"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _denied(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"}, outcome="denied")
