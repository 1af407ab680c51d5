"""What can be wrong with keys, as sentences for people."""

from __future__ import annotations


class KeysError(Exception):
    """The keys cannot be read or written; the message says what to change."""


class KeyRefused(Exception):
    """Somebody presented something that is no valid key.

    `key_id` is that of the key whose secret was shown, or empty: what is told of a key is told to its holder alone.
    """

    def __init__(self, message: str, code: str, key_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.key_id = key_id
