"""The text of a key, `sk-ID-SECRET`, and the hash that is kept of it.

The id finds the key; the secret has 256 bits, so that one fast hash is enough, where passwords need a slow one. The
hash is HMAC-SHA256 (RFC 2104) under a pepper that is kept elsewhere: the file of keys alone verifies nothing.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string

PREFIX = "sk"
ID_PATTERN = r"[a-z0-9]{4,32}"
ID_CHARACTERS = 10

_ID_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # without what looks alike in print
_SECRET_ALPHABET = string.ascii_letters + string.digits
_SECRET_CHARACTERS = 43  # 256 bits
_KEY = re.compile(rf"{PREFIX}-({ID_PATTERN})-[A-Za-z0-9_-]+")


def new_id() -> str:
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(ID_CHARACTERS))


def new_key(key_id: str) -> str:
    """A fresh key under `key_id`, to be shown once and kept nowhere."""
    secret = "".join(secrets.choice(_SECRET_ALPHABET) for _ in range(_SECRET_CHARACTERS))
    return f"{PREFIX}-{key_id}-{secret}"


def id_of(key: str) -> str | None:
    """The id in the text of a key; None for what does not look like one."""
    match = _KEY.fullmatch(key)
    return None if match is None else match[1]


def key_hash(pepper: bytes, key: str) -> bytes:
    """32 bytes. The whole text is hashed, so a hash cannot be moved to another id."""
    return hmac.digest(pepper, key.encode("utf-8", "surrogateescape"), "sha256")
