"""Cut a byte stream into the frames of `appliance.protocol.wire`."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.protocol.wire import FRAME_HEADER_BYTES, MAX_FRAME_BYTES


class FrameError(ValueError):
    """The peer does not speak the protocol; the connection cannot go on."""


class FrameSplitter:
    """Collects received bytes and gives back the bodies of the frames that are complete."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Bodies completed by `data`, in order. Raises `FrameError` for a length that no sane peer sends."""
        if self._buffer:
            self._buffer += data
            data = b""
        start = 0
        source: bytes | bytearray = data or self._buffer
        while len(source) - start >= FRAME_HEADER_BYTES:
            body = start + FRAME_HEADER_BYTES
            length = int.from_bytes(source[start:body], "big")
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a frame of {length} bytes was announced; the limit is {MAX_FRAME_BYTES}")
            if len(source) - body < length:
                break
            start = body + length
            yield bytes(source[body:start])
        if source is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += source[start:]
