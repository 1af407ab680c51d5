"""One machine: what a client sees through NGINX is what the server says, as it says it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest

from appliance.front.description import Front
from tests.integration.front.conftest import FrontedServer, StartFront, client_of
from tests.integration.server.harness import KEY, eventually
from tests.integration.server.null_engine import REPLY
from tests.support.http2_connection import Http2Connection

TEXT = "/v1/completions"
STREAM = {"prompt": "a", "max_tokens": 3, "stream": True}
SECURITY_HEADERS = {
    "strict-transport-security": "max-age=63072000",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}

over_both = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error, in OpenAI's form, and with the headers that every answer has exactly once."""
    assert response.headers["content-type"].partition(";")[0] == "application/json"
    body = response.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}
    for name, value in SECURITY_HEADERS.items():
        assert response.headers.get_list(name) == [value]
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers.get_list("x-should-retry") in (["true"], ["false"])
    error: dict[str, Any] = body["error"]
    return error


def access_log(fronted: FrontedServer) -> list[dict[str, Any]]:
    return [json.loads(line) for line in fronted.nginx.access_log.read_text().splitlines()]


def refuse_at_once(front: Front) -> Front:
    """NGINX waits a second for the server, not ten longer than the server's own limit."""
    return dataclasses.replace(front, limits=dataclasses.replace(front.limits, longest_seconds=-9))


# ---- requests and streams --------------------------------------------------------------------------------------------


@over_both
async def test_a_request_is_answered_over_tls(fronted: FrontedServer, version: str) -> None:
    response = await fronted.clients[version].post(TEXT, json={"prompt": "a", "max_tokens": 9})
    assert (response.status_code, response.http_version) == (200, version)
    assert response.json()["choices"][0]["text"] == REPLY[:9].decode()
    for name, value in SECURITY_HEADERS.items():
        assert response.headers.get_list(name) == [value]


@over_both
async def test_the_first_token_arrives_while_the_second_is_not_computed_yet(
    fronted: FrontedServer, version: str
) -> None:
    fronted.server.engine.step_seconds = 3600.0
    async with fronted.clients[version].stream("POST", TEXT, json=STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "content-encoding" not in response.headers
        first = await anext(response.aiter_lines())
    assert json.loads(first.removeprefix("data: "))["choices"][0]["text"] == REPLY[:1].decode()


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_disconnects_ends_its_request_in_the_engine(fronted: FrontedServer, streamed: bool) -> None:
    fronted.server.engine.step_seconds = 0.05
    request = asyncio.create_task(fronted.http1.post(TEXT, json={**STREAM, "max_tokens": 200, "stream": streamed}))
    await eventually(lambda: fronted.server.engine.generated > 1)
    request.cancel()
    await eventually(lambda: len(fronted.server.engine.aborted) == 1)
    await fronted.server.nothing_is_left()


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_so_does_an_http_2_stream_that_is_reset_or_loses_its_connection(
    fronted: FrontedServer, streamed: bool, how: str
) -> None:
    fronted.server.engine.step_seconds = 0.05
    connection = await http2_connection(fronted)
    stream = connection.post(TEXT, json.dumps({**STREAM, "max_tokens": 200, "stream": streamed}).encode())
    await eventually(lambda: fronted.server.engine.generated > 1)
    if streamed:
        assert (await connection.first_data(stream)).startswith(b"data: {")
    if how == "reset":
        connection.reset(stream)
    else:
        connection.close()
    await eventually(lambda: len(fronted.server.engine.aborted) == 1)
    await fronted.server.nothing_is_left()
    connection.close()


async def test_a_stream_that_waits_does_not_delay_another_on_its_connection(fronted: FrontedServer) -> None:
    fronted.server.engine.hold = True
    connection = await http2_connection(fronted)
    connection.post(TEXT, json.dumps(STREAM).encode())
    await eventually(lambda: len(fronted.server.engine.running) == 1)
    other = connection.post("/v1/chat/completions", b"{}")
    assert b"invalid_request_error" in await connection.first_data(other)
    connection.close()


async def http2_connection(fronted: FrontedServer) -> Http2Connection:
    layout = fronted.nginx.layout
    return await Http2Connection.open(layout.https_port, layout.certificate, KEY)


async def test_openais_client_streams_over_http_2(fronted: FrontedServer) -> None:
    client = openai.AsyncOpenAI(base_url=fronted.nginx.url + "/v1", api_key=KEY, http_client=fronted.http2)
    stream = await client.completions.create(model="null", prompt="a", max_tokens=20, stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == REPLY[:20].decode()


async def test_many_streams_share_one_http_2_connection(fronted: FrontedServer) -> None:
    async def stream() -> str:
        response = await fronted.http2.post(TEXT, json={**STREAM, "max_tokens": 20})
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        return "".join(event["choices"][0]["text"] for event in events)

    assert await asyncio.gather(*(stream() for _ in range(150))) == [REPLY[:20].decode()] * 150
    assert len({entry["connection"] for entry in access_log(fronted)}) == 1


async def test_connections_to_the_server_are_kept(fronted: FrontedServer) -> None:
    for _ in range(5):
        assert (await fronted.http1.get("/v1/models")).status_code == 200
    connections = [c for c in psutil.net_connections("unix") if c.laddr == fronted.server.context.settings.server.uds]
    assert sum(c.status != "LISTEN" for c in connections) <= 2, connections


# ---- what is public --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/admin", "/admin/drain", "/", "/version", "/openapi.json", "/tokenize", "/_error/500"),
        *("//metrics", "/v1/../metrics", "/v1/..%2fmetrics", "/v1/%2e%2e/metrics", "/health/../metrics", "/readyz/x"),
    ],
)
async def test_everything_else_is_not_there(fronted: FrontedServer, path: str) -> None:
    status, headers, body = await raw(fronted, f"GET {path} HTTP/1.1", f"Authorization: Bearer {KEY}")
    assert status == 404, body
    assert json.loads(body)["error"]["code"] == "unknown_url"
    assert "metrics" not in headers.lower()


async def test_the_probes_are_for_anyone_and_the_api_is_not(fronted: FrontedServer) -> None:
    async with client_of(fronted.nginx, http2=False, key="wrong") as stranger:
        assert (await stranger.get("/health")).status_code == 200
        assert (await stranger.get("/readyz")).status_code == 200
        response = await stranger.get("/v1/models")
    assert response.status_code == 401 and error_of(response)["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_plain_http_is_refused_and_serves_acmes_challenges(fronted: FrontedServer) -> None:
    base = f"http://127.0.0.1:{fronted.nginx.layout.http_port}"
    folder = fronted.nginx.layout.acme_folder / ".well-known/acme-challenge"
    folder.mkdir(parents=True)
    (folder / "token").write_text("token.thumbprint")
    async with httpx2.AsyncClient() as http:
        response = await http.post(base + TEXT, json=STREAM)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "https_only")
        assert (await http.get(base + "/.well-known/acme-challenge/token")).text == "token.thumbprint"
        assert (await http.get(base + "/.well-known/acme-challenge/other")).status_code == 404
    wrong = f"http://127.0.0.1:{fronted.nginx.layout.https_port}"
    async with httpx2.AsyncClient() as http:
        response = await http.get(wrong + "/v1/models")
    assert (response.status_code, error_of(response)["code"]) == (400, "https_only")


# ---- errors ----------------------------------------------------------------------------------------------------------


@over_both
@pytest.mark.parametrize("chunked", [False, True])
async def test_413_for_a_body_beyond_max_request_bytes(start: StartFront, version: str, chunked: bool) -> None:
    fronted = await start(max_request_bytes=5000)
    body = json.dumps({"prompt": "a" * 20000}).encode()

    async def pieces() -> Any:
        for offset in range(0, len(body), 4000):
            yield body[offset : offset + 4000]

    content = pieces() if chunked else body
    response = await fronted.clients[version].post(TEXT, content=content)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large" and "5000" in error_of(response)["message"]
    assert fronted.server.engine.seen == []


async def test_429_beyond_the_rate_of_one_key_and_not_of_another(start: StartFront) -> None:
    fronted = await start(key_rate=1, max_num_seqs=1, max_num_queued_reqs=1)
    paths = ["/v1/models"] * 6

    async def statuses(key: str) -> list[httpx2.Response]:
        async with client_of(fronted.nginx, http2=False, key=key) as client:
            return [await client.get(path) for path in paths]

    refused = [response for response in await statuses("sk-alpha-secret1") if response.status_code == 429]
    assert 2 <= len(refused) <= 3  # a burst of two, and one a second
    assert error_of(refused[0])["code"] == "rate_limit_exceeded" and refused[0].headers["retry-after"] == "1"
    assert (await statuses("sk-beta-secret2"))[0].status_code == 200
    assert {entry["key"] for entry in access_log(fronted)} == {"alpha", "beta"}


async def test_429_beyond_the_requests_that_one_key_may_have_at_once(start: StartFront) -> None:
    fronted = await start(change=one_at_once)
    fronted.server.engine.hold = True
    async with client_of(fronted.nginx, http2=False, key="sk-alpha-1") as alpha:
        waiting = asyncio.create_task(alpha.post(TEXT, json=STREAM))
        await eventually(lambda: len(fronted.server.engine.running) == 1)
        response = await alpha.get("/v1/models")
        assert (response.status_code, error_of(response)["code"]) == (429, "rate_limit_exceeded")
        async with client_of(fronted.nginx, http2=False, key="sk-beta-2") as beta:
            assert (await beta.get("/v1/models")).status_code == 200
        fronted.server.engine.hold = False
        assert (await waiting).status_code == 200


def one_at_once(front: Front) -> Front:
    return dataclasses.replace(front, limits=dataclasses.replace(front.limits, concurrency=1))


async def test_429_of_the_server_is_passed_on(start: StartFront) -> None:
    fronted = await start(max_num_queued_reqs=1)
    fronted.server.engine.hold = True
    waiting = asyncio.create_task(fronted.http1.post(TEXT, json=STREAM))
    await eventually(lambda: len(fronted.server.engine.running) == 1)
    response = await fronted.http1.post(TEXT, json=STREAM)
    assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
    fronted.server.engine.hold = False
    assert (await waiting).status_code == 200


async def test_502_when_the_server_process_is_gone(start: StartFront) -> None:
    fronted = await start(change=lambda front: dataclasses.replace(front, upstreams=(nobody(front),)))
    response = await fronted.http1.post(TEXT, json=STREAM, headers={"X-Request-Id": "mine-1"})
    assert (response.status_code, error_of(response)["code"]) == (502, "server_unavailable")
    assert (response.headers["retry-after"], response.headers["x-should-retry"]) == ("2", "true")
    assert response.headers["x-request-id"] == "mine-1"


def nobody(front: Front) -> Any:
    return dataclasses.replace(front.upstreams[0], address=front.upstreams[0].address + ".nobody")


async def test_503_of_the_server_is_passed_on(start: StartFront) -> None:
    fronted = await start(engine_ready=False)
    response = await fronted.http1.post(TEXT, json=STREAM)
    assert (response.status_code, error_of(response)["code"]) == (503, "engine_unavailable")
    assert response.headers.get_list("retry-after") == ["5"]
    assert (await fronted.http1.get("/readyz")).status_code == 503


async def test_504_of_the_server_comes_before_nginxs_own(start: StartFront) -> None:
    fronted = await start(request_timeout=0.2)
    fronted.server.engine.hold = True
    response = await fronted.http1.post(TEXT, json={"prompt": "a"})
    assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
    assert "request-timeout" in error_of(response)["message"]


async def test_504_of_nginx_has_the_same_form(start: StartFront) -> None:
    fronted = await start(change=refuse_at_once)
    fronted.server.engine.hold = True
    response = await fronted.http1.post(TEXT, json={"prompt": "a"})
    assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
    assert response.headers["x-should-retry"] == "false"
    await eventually(lambda: len(fronted.server.engine.aborted) == 1)


@pytest.mark.parametrize(
    ("lines", "status", "code"),
    [
        (["GET /v1/models HTTQ/1.1"], 400, "invalid_http"),
        (["GET /v1/models HTTP/1.1", "Content-Length: x"], 400, "invalid_http"),
        (["GET /v1/models HTTP/1.1", "X: " + "x" * 40000], 431, "headers_too_large"),
        (["GET /v1/" + "x" * 40000 + " HTTP/1.1"], 414, "uri_too_long"),
        (["TRACE /v1/models HTTP/1.1"], 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_http_gets_the_same_form(
    fronted: FrontedServer, lines: list[str], status: int, code: str
) -> None:
    found, _, body = await raw(fronted, *lines)
    assert (found, json.loads(body)["error"]["code"]) == (status, code)


async def raw(fronted: FrontedServer, *lines: str) -> tuple[int, str, str]:
    """Status, headers and body of a request that no client library would send."""
    context = ssl.create_default_context(cafile=str(fronted.nginx.layout.certificate))
    reader, writer = await asyncio.open_connection("127.0.0.1", fronted.nginx.layout.https_port, ssl=context)
    host = [] if len(lines[0].split()) < 3 else ["Host: x", "Connection: close"]
    writer.write("\r\n".join([lines[0], *host, *lines[1:], "", ""]).encode())
    data = (await reader.read()).decode()
    writer.close()
    head, _, body = data.partition("\r\n\r\n")
    body = re.sub(r"^[0-9a-f]+\r\n|\r\n0\r\n\r\n$", "", body)
    return int(head.split()[1]), head, body


# ---- what is logged and passed on ------------------------------------------------------------------------------------


async def test_the_log_has_the_keys_id_and_neither_secret_nor_prompt(start: StartFront) -> None:
    key = "sk-tenant1-verysecret-part"
    fronted = await start(api_key=(key,))
    async with client_of(fronted.nginx, http2=True, key=key) as client:
        headers = {"X-Request-Id": "trace-7", "X-Forwarded-For": "6.6.6.6"}
        response = await client.post(TEXT + "?q=private", json={"prompt": "my secret prompt"}, headers=headers)
    assert response.status_code == 200 and response.headers.get_list("x-request-id") == ["trace-7"]
    [entry] = access_log(fronted)
    assert (entry["key"], entry["request_id"], entry["path"]) == ("tenant1", "trace-7", TEXT)
    assert (entry["status"], entry["protocol"], entry["tls"]) == (200, "HTTP/2.0", "TLSv1.3")
    assert entry["client"] == "127.0.0.1" and entry["seconds"] >= 0
    everything = fronted.nginx.access_log.read_text() + fronted.nginx.error_log.read_text()
    assert "secret" not in everything and "private" not in everything


@pytest.mark.parametrize("sent", ["", "two words", "x" * 129, "evil\u00e9"])
async def test_a_request_id_that_is_not_safe_is_replaced(fronted: FrontedServer, sent: str) -> None:
    response = await fronted.http1.get("/v1/models", headers={"X-Request-Id": sent.encode()})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


async def test_the_client_of_a_trusted_proxy_is_who_it_says(start: StartFront) -> None:
    fronted = await start(change=lambda front: dataclasses.replace(front, trusted_proxies=("127.0.0.0/8",)))
    forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9"}  # the client itself wrote the first
    assert (await fronted.http1.get("/v1/models", headers=forwarded)).status_code == 200
    assert access_log(fronted)[0]["client"] == "203.0.113.9"


async def test_a_body_beyond_the_buffer_arrives_whole_and_leaves_no_file(start: StartFront, tmp_path: Path) -> None:
    fronted = await start(max_request_bytes=2 * 2**20)
    response = await fronted.http1.post(TEXT, json={"prompt": "a" * (2**20 + 5000)})
    assert response.status_code == 400 and "context" in response.json()["error"]["message"]
    assert [file for file in tmp_path.glob("pagebox-nginx-client_body/**/*") if file.is_file()] == []


async def test_a_client_that_connects_and_says_nothing_holds_nothing_up(fronted: FrontedServer) -> None:
    with socket.create_connection(("127.0.0.1", fronted.nginx.layout.https_port)):
        assert (await fronted.http1.get("/v1/models")).status_code == 200
