"""The file of keys as text: YAML, read without YAML's guesses.

Every value is read as the characters that stand there, and converted by the field it is for. A hash of digits alone
stays a text that way, and `id: 1e10` is no number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import yaml

from appliance.keys.errors import KeysError
from appliance.keys.record import KeyRecord

VERSION = 1
MOST_KEYS = 4096

_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_Loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_HEADER = """\
# API keys of pagebox. The hashes are HMAC-SHA256 under the pepper; the keys themselves are kept nowhere.
# Limits may be edited here, and count within seconds; `pagebox keys` adds, revokes and rotates, and keeps no comments.
"""


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    keys: list[dict[str, Any]]


def parse(data: bytes, origin: str) -> tuple[KeyRecord, ...]:
    """The keys in `data`; `origin` is where they come from, for the sentence of a `KeysError`."""
    try:
        loaded = yaml.load(data, _Loader)  # this loader makes texts, lists and mappings alone
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise KeysError(f"{origin}:{line} is not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise KeysError(f"{origin} is not UTF-8 text.") from error
    if loaded in (None, ""):
        return ()
    try:
        document = msgspec.convert(loaded, _Document, strict=False)
    except msgspec.ValidationError as error:
        raise KeysError(f"{origin} must hold `version: {VERSION}` and a list `keys`: {error}.") from error
    if document.version != VERSION:
        raise KeysError(f"{origin} has version {document.version}; this pagebox reads version {VERSION}.")
    if len(document.keys) > MOST_KEYS:
        raise KeysError(f"{origin} has {len(document.keys)} keys; {MOST_KEYS} are the most. Remove revoked ones.")
    records = tuple(_record(raw, number, origin) for number, raw in enumerate(document.keys, 1))
    twice = [key_id for key_id, count in Counter(record.id for record in records).items() if count > 1]
    if twice:
        raise KeysError(f"{origin} has the id {twice[0]} twice; remove one of them.")
    return records


def serialize(records: Sequence[KeyRecord]) -> bytes:
    keys = [msgspec.to_builtins(record) for record in records]
    text = yaml.safe_dump({"version": VERSION, "keys": keys}, sort_keys=False, allow_unicode=True, width=120)
    return (_HEADER + text).encode()


def _record(raw: dict[str, Any], number: int, origin: str) -> KeyRecord:
    which = f"{origin}, key {raw.get('id') or f'number {number}'}"
    expires = raw.get("expires")
    if isinstance(expires, str) and _DATE.fullmatch(expires):
        raw = {**raw, "expires": f"{expires}T00:00:00Z"}
    try:
        record = msgspec.convert(raw, KeyRecord, strict=False)
    except msgspec.ValidationError as error:
        raise KeysError(f"{which}: {error}.") from error
    times = {"created": record.created, "expires": record.expires, "revoked": record.revoked}
    if record.previous is not None:
        times["previous.until"] = record.previous.until
    for name, value in times.items():
        if value is not None and value.tzinfo is None:
            raise KeysError(f"{which}: {name} needs a time zone, as in {_example()}.")
    return record


def _example() -> str:
    return datetime(2030, 1, 31, 12, tzinfo=UTC).isoformat().replace("+00:00", "Z")
