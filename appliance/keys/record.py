"""One key as it stands in the file: who has it, what it may do, and the hash of its secret."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec

from appliance.keys.secret import ID_PATTERN

KeyId = Annotated[str, msgspec.Meta(pattern=f"^{ID_PATTERN}$")]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class PreviousSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The secret before the last rotation, still valid `until` then."""

    hash: Hash
    until: datetime


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Times have a time zone. What is None is not limited."""

    id: KeyId
    name: Text
    hash: Hash
    created: datetime
    rpm: Count | None = None  # requests a minute
    tpm: Count | None = None  # tokens a minute, prompt and reply together
    concurrency: Count | None = None  # requests at a time
    priority: int = 0  # the most urgent that a request may be: lower goes first
    models: tuple[Text, ...] = ()  # names that may be asked for; empty: all
    cache_group: str = ""  # keys of one group share cached prefixes; empty: this key shares them with no other
    expires: datetime | None = None
    revoked: datetime | None = None
    previous: PreviousSecret | None = None

    def allows(self, model: str) -> bool:
        return not self.models or model in self.models

    def state(self, now: datetime) -> str:
        """For people: revoked, expired, rotating (two secrets are valid) or active."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        if self.expires is not None and self.expires <= now:
            return "expired"
        return "rotating" if self.previous is not None and self.previous.until > now else "active"
