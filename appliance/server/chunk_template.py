"""Events that differ in nothing but their text, without building and encoding the whole chunk each time."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec

_encode_text = msgspec.json.Encoder().encode


class ChunkTemplate:
    """Most events of a stream bring text and no more. What surrounds the text is encoded once."""

    def __init__(self, chunk: Callable[[str], msgspec.Struct]) -> None:
        """`chunk(text)` is a chunk with that text; it has to be the same for every text."""
        mark = secrets.token_hex(16)  # so that no id or model name can hold it
        before, after = msgspec.json.encode(chunk(mark)).split(f'"{mark}"'.encode())
        self._before = b"data: " + before
        self._after = after + b"\n\n"

    def event(self, text: str) -> bytes:
        """The server-sent event of the chunk with `text`."""
        return self._before + _encode_text(text) + self._after
