"""Who may call what, and what comes back in the headers."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from appliance.config import Settings
from appliance.server.routes.table import routes
from tests.integration.server.harness import KEY, Server

PROBES = {"/livez", "/readyz", "/health", "/ping", "/startupz"}


async def call(server: Server, method: str, path: str, headers: dict[str, str]) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, server.url + path, headers=headers) as response,
    ):
        return response.status, await response.read()


async def test_every_registered_route_but_the_probes_refuses_without_a_valid_key(start: Any) -> None:
    server = await start(api_key=("sk-one", "sk-two"))
    seen = set()
    for route in server.app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical.replace("{id}", "null")
        seen.add(path)
        without, body = await call(server, route.method, path, {})
        wrong, _ = await call(server, route.method, path, {"Authorization": "Bearer sk-three"})
        right, _ = await call(server, route.method, path, {"Authorization": "Bearer sk-two"})
        if path in PROBES:
            assert (without, wrong, right) == (200, 200, 200), path
        else:
            assert (without, wrong) == (401, 401), path
            assert right in (200, 415), path
            if route.method != "HEAD":
                assert json.loads(body)["error"]["type"] == "authentication_error"
    assert seen > PROBES
    assert seen >= {"/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics", "/version", "/openapi.json"}


async def test_unknown_routes_tell_nothing_without_a_key(start: Any) -> None:
    server = await start(api_key=("sk-one",))
    assert (await call(server, "GET", "/nothing", {}))[0] == 401
    assert (await call(server, "DELETE", "/v1/models", {}))[0] == 401
    assert (await call(server, "GET", "/nothing", {"Authorization": f"Bearer {KEY}"}))[0] == 404


@pytest.mark.parametrize(
    "header",
    ["sk-one", "Basic sk-one", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-onee", "Bearer \u00fc", "bearer x"],
)
async def test_a_malformed_authorization_is_refused(start: Any, header: str) -> None:
    server = await start(api_key=("sk-one",))
    assert (await call(server, "GET", "/version", {"Authorization": header}))[0] == 401


def test_only_the_probes_are_declared_open() -> None:
    assert {route.path for route in routes(Settings()) if route.access.value == "anyone"} == PROBES


async def test_without_configured_keys_everybody_may_call(server: Server) -> None:
    assert (await call(server, "GET", "/v1/models", {}))[0] == 200


async def test_the_request_id_is_kept_when_it_was_sent_and_made_otherwise(server: Server) -> None:
    for sent, expected in [("abc-1", "abc-1"), ("a b\u00e9c", "abc"), ("x" * 500, "x" * 128)]:
        async with server.http.get(server.url + "/version", headers={"X-Request-Id": sent}) as response:
            assert response.headers["X-Request-Id"] == expected
            assert int(response.headers["OpenAI-Processing-Ms"]) >= 0
    async with server.http.get(server.url + "/nothing") as response:
        assert response.headers["X-Request-Id"].startswith("req-")
    async with server.http.post(
        server.url + "/v1/completions", json={"prompt": "a", "stream": True}, headers={"X-Request-Id": "s"}
    ) as response:
        assert response.headers["X-Request-Id"] == "s"
        assert response.headers["X-Accel-Buffering"] == "no"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"


async def test_cors_headers_are_sent_to_allowed_origins_alone(start: Any) -> None:
    server = await start(allowed_origins=("https://chat.example.com",), api_key=(KEY,))
    preflight = {"Origin": "https://chat.example.com", "Access-Control-Request-Method": "POST"}
    async with server.http.options(server.url + "/v1/completions", headers=preflight) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://chat.example.com"
    async with server.http.get(server.url + "/v1/models", headers={"Origin": "https://evil.example.com"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers
    evil = {**preflight, "Origin": "https://evil.example.com"}
    async with server.http.options(server.url + "/v1/completions", headers=evil) as response:
        assert response.status == 405
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_without_allowed_origins_there_is_no_cors(server: Server) -> None:
    async with server.http.get(server.url + "/v1/models", headers={"Origin": "https://a.example.com"}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_root_path_works_with_and_without_the_prefix(start: Any) -> None:
    server = await start(root_path="/llm", api_key=(KEY,))
    assert (await server.get("/llm/v1/models"))[0] == 200
    assert (await server.get("/v1/models"))[0] == 200
    assert (await call(server, "GET", "/llm/v1/models", {}))[0] == 401
    assert (await call(server, "GET", "/llm/livez", {}))[0] == 200
    assert json.loads((await server.get("/openapi.json"))[1])["servers"] == [{"url": "/llm"}]
