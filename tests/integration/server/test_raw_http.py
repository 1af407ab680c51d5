"""What no well-behaved client sends, byte by byte."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.server.harness import Server, eventually

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(server.url)
    return await asyncio.open_connection(url.hostname, url.port)


async def outcomes(server: Server, outcome: str) -> None:
    await eventually(lambda: f'outcome="{outcome}"}} 1.0' in server.context.metrics.exposition().decode())


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_a_disconnect_and_no_error(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    _, writer = await connect(server)
    writer.write((HEAD + 'Content-Length: 100\r\n\r\n{"prompt": "a').encode())
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await outcomes(server, "disconnected")
    await server.nothing_is_left()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_body_that_never_ends_runs_into_the_time_limit(start: Any) -> None:
    server: Server = await start(request_timeout=0.1)
    reader, writer = await connect(server)
    writer.write((HEAD + 'Content-Length: 100\r\n\r\n{"prompt": "a').encode())
    assert (await reader.readline()).split()[1] == b"504"
    writer.close()


async def test_a_body_in_chunks_and_in_small_pieces_is_read_whole(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write((HEAD + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n").encode())
    for piece in ('{"pro', 'mpt": "a", "max', '_tokens": 3}'):
        writer.write(f"{len(piece):x}\r\n{piece}\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.005)
    writer.write(b"0\r\n\r\n")
    head, body = (await reader.read()).split(b"\r\n\r\n", 1)
    assert head.split()[1] == b"200"
    assert json.loads(body)["choices"][0]["text"] == "The"
    writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "reason"),
    [
        (b"nonsense\r\n\r\n", "Invalid method encountered"),
        (b"GET / HTTP/9.9\r\n\r\n", "Bad status line: Invalid HTTP version"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n", "Got more than 8190 bytes when reading"),
        (b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", "Invalid URL"),
        (b"GET / HTTP/1.1\r\nAuthorization: Bearer sk-secret\x01\r\n\r\n", "Invalid header value char"),
    ],
)
async def test_what_is_not_http_is_a_400_with_openais_body_and_one_line_in_the_log(
    server: Server, caplog: pytest.LogCaptureFixture, request_bytes: bytes, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    reader, writer = await connect(server)
    writer.write(request_bytes)
    head, body = (await asyncio.wait_for(reader.read(), 5)).split(b"\r\n\r\n", 1)  # the server closes the connection
    writer.close()
    assert head.split()[1] == b"400"
    assert b"application/json" in head
    assert json.loads(body)["error"] == {
        "message": f"The request is not valid HTTP: {reason}.",
        "type": "invalid_request_error",
        "param": None,
        "code": "invalid_http",
    }
    [line] = [record for record in caplog.records if "HTTP" in record.getMessage() or record.levelname == "ERROR"]
    assert (line.levelname, line.getMessage()) == ("INFO", f"Malformed HTTP from 127.0.0.1: {reason}")
    assert line.exc_info is None
    await outcomes(server, "client_error")


async def test_a_malformed_request_after_a_good_one_on_the_same_connection_is_a_400(server: Server) -> None:
    reader, writer = await connect(server)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"200"
    writer.write(b"nonsense\r\n\r\n")
    assert b'"code":"invalid_http"' in await asyncio.wait_for(reader.read(), 5)
    writer.close()


async def test_a_stream_whose_client_resets_the_connection_is_aborted(server: Server) -> None:
    server.engine.step_seconds = 0.005
    body = '{"prompt": "a", "max_tokens": 250, "stream": true}'
    reader, writer = await connect(server)
    writer.write((HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    await server.nothing_is_left()
    assert len(server.engine.aborted) == 1
