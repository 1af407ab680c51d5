"""One HTTP/2 connection with streams that can be reset, and of which one never waits for another.

Client libraries at hand do neither: a stream whose reader goes away stays open, and a finished answer is handed over
when something else arrives.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes


class Http2Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._key = key
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._connection.initiate_connection()

    @classmethod
    async def open(cls, port: int, certificate: Path, key: str) -> Http2Connection:
        context = ssl.create_default_context(cafile=str(certificate))
        context.set_alpn_protocols(["h2"])
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=context), key)

    def post(self, path: str, body: bytes) -> int:
        """The number of a new stream."""
        stream = self._connection.get_next_available_stream_id()
        headers = {
            ":method": "POST",
            ":scheme": "https",
            ":authority": "127.0.0.1",
            ":path": path,
            "authorization": f"Bearer {self._key}",
            "content-type": "application/json",
        }
        self._connection.send_headers(stream, list(headers.items()))
        self._connection.send_data(stream, body, end_stream=True)
        self._flush()
        return stream

    async def first_data(self, stream: int) -> bytes:
        """What the first DATA frame of this stream holds; those of others are forgotten."""
        while received := await self._reader.read(65536):
            for event in self._connection.receive_data(received):
                if isinstance(event, h2.events.DataReceived) and event.stream_id == stream and event.data:
                    return bytes(event.data)
            self._flush()
        raise ConnectionResetError

    def reset(self, stream: int) -> None:
        """RST_STREAM; the connection stays open."""
        self._connection.reset_stream(stream, ErrorCodes.CANCEL)
        self._flush()

    def close(self) -> None:
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write(self._connection.data_to_send())
