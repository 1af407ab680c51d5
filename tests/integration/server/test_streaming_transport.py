"""Event streams as bytes on a socket: framing, and clients that read slowly."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

from tests.integration.server.harness import Server, eventually
from tests.integration.server.null_engine import REPLY


def connect(server: Server, receive_buffer: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    connection.connect_ex(("127.0.0.1", urlsplit(server.url).port))
    return connection


def request(version: str, **fields: Any) -> bytes:
    body = json.dumps({"prompt": [64], "stream": True, **fields}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + body


async def read_to_end(connection: socket.socket) -> tuple[bytes, bytes]:
    """Head and body."""
    data = b""
    loop = asyncio.get_running_loop()
    with connection:
        while received := await loop.sock_recv(connection, 65536):
            data += received
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> bytes:
    data = b""
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        data += rest[:length]
        if length == 0:
            assert rest == b"\r\n"
            return data
        body = rest[length + 2 :]


def texts(body: bytes) -> tuple[dict[int, str], int]:
    """The text of each choice, and the number of events that it came in."""
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    found: dict[int, str] = {}
    for line in events:
        (choice,) = json.loads(line.removeprefix("data: "))["choices"]
        found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return found, len(events)


async def test_http_1_1_gets_chunks_and_http_1_0_the_bare_events(server: Server) -> None:
    loop = asyncio.get_running_loop()
    for version in ("1.1", "1.0"):
        connection = connect(server)
        await loop.sock_sendall(connection, request(version, max_tokens=9))
        head, body = await read_to_end(connection)
        assert head.startswith(f"HTTP/{version} 200".encode())
        assert (b"chunked" in head) == (version == "1.1")
        found, _ = texts(unchunked(body) if version == "1.1" else body)
        assert found == {0: REPLY[:9].decode()}


async def test_a_client_that_does_not_read_gets_everything_later_in_fewer_events(server: Server) -> None:
    loop = asyncio.get_running_loop()
    connection = connect(server, receive_buffer=4096)
    n, length = 100, 200
    await loop.sock_sendall(connection, request("1.1", max_tokens=length, n=n))
    await eventually(lambda: server.engine.generated == n * length)  # nobody waits for the client
    _, body = await read_to_end(connection)
    found, events = texts(unchunked(body))
    whole = (REPLY * 10)[:length].decode(errors="replace")
    assert found == dict.fromkeys(range(n), whole)
    assert events < n * length / 2
    await server.nothing_is_left()
