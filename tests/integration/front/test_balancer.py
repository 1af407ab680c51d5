"""Many machines: who gets a request, and what a client sees when a machine refuses, dies or is slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

from appliance.config import ServerSettings, Settings
from appliance.front.description import balancer_front, machine_front
from tests.integration.front.conftest import client_of
from tests.support.nginx import layout_in, needs_nginx, running_nginx

pytestmark = needs_nginx

TEXT = "/v1/completions"


@dataclass
class Machine:
    """Answers with its name; `behaviour` is what it does with a POST instead."""

    name: str
    url: str = ""
    behaviour: str = "answers"
    seen: list[str] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(await request.text())
        if self.behaviour == "refuses":
            return web.json_response({"error": {"code": "instance_draining"}}, status=503)
        if self.behaviour == "dies":
            assert request.transport is not None
            request.transport.abort()
        if self.behaviour == "dies in the middle":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: one\n\n")
            assert request.transport is not None
            request.transport.abort()
            return response
        if self.behaviour == "waits":
            await self.release.wait()
        return web.json_response({"machine": self.name, "id": request.headers["X-Request-Id"]})


@asynccontextmanager
async def machines(names: str) -> AsyncIterator[list[Machine]]:
    async with AsyncExitStack() as stack:
        found = []
        for name in names:
            machine = Machine(name)
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", machine.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            machine.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            found.append(machine)
        yield found


@asynccontextmanager
async def balanced(folder: Path, found: list[Machine], **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    front = balancer_front(Settings(), [machine.url for machine in found], **options)
    async with running_nginx(front, folder) as nginx, client_of(nginx, http2=False) as client:
        yield client


async def ask(client: httpx2.AsyncClient, body: str = "{}", **headers: str) -> str:
    response = await client.post(TEXT, content=body, headers=headers)
    assert response.status_code == 200, response.text
    return str(response.json()["machine"])


async def test_the_machine_with_the_fewest_requests_gets_the_next(tmp_path: Path) -> None:
    async with machines("ab") as found, balanced(tmp_path, found) as client:
        for machine in found:
            machine.behaviour = "waits"
        first = asyncio.create_task(ask(client))
        await until(lambda: len(found[0].seen) + len(found[1].seen) == 1)
        busy, idle = sorted(found, key=lambda machine: -len(machine.seen))
        idle.behaviour = "answers"
        assert {await ask(client) for _ in range(6)} == {idle.name}
        busy.release.set()
        assert await first == busy.name


async def test_a_header_keeps_a_session_on_its_machine_and_machines_that_leave_move_only_theirs(tmp_path: Path) -> None:
    async with machines("abc") as found, balanced(tmp_path, found, affinity_header="X-Session-Id") as client:
        sessions = [f"session-{i}" for i in range(30)]
        before = {session: await ask(client, **{"X-Session-Id": session}) for session in sessions}
        assert {session: await ask(client, **{"X-Session-Id": session}) for session in sessions} == before
        assert len(Counter(before.values())) == 3
        assert len({await ask(client) for _ in range(20)}) == 3  # without one: spread
        found[0].behaviour = "refuses"
        after = {session: await ask(client, **{"X-Session-Id": session}) for session in sessions}
        assert {session for session in sessions if after[session] != before[session]} == {
            session for session in sessions if before[session] == "a"
        }


@pytest.mark.parametrize("behaviour", ["refuses", "dies"])
async def test_a_machine_that_refuses_is_passed_over_and_left_alone(tmp_path: Path, behaviour: str) -> None:
    async with machines("ab") as found, balanced(tmp_path, found) as client:
        found[0].behaviour = behaviour
        assert [await ask(client, f'{{"prompt": "{i}"}}') for i in range(12)] == ["b"] * 12
        assert len(found[0].seen) <= 2  # a worker process learns of it by one request, and says so to the others
        assert len(found[1].seen) == 12 and '"0"' in found[1].seen[0]  # the whole body went to the second


async def test_a_machine_that_is_off_is_passed_over(tmp_path: Path) -> None:
    async with machines("ab") as found:
        off = Machine("off", url="http://127.0.0.1:9")
        async with balanced(tmp_path, [off, *found]) as client:
            assert {await ask(client) for _ in range(8)} == {"a", "b"}


async def test_an_answer_that_has_begun_is_never_asked_for_again(tmp_path: Path) -> None:
    async with machines("ab") as found, balanced(tmp_path, found) as client:
        for machine in found:
            machine.behaviour = "dies in the middle"
        text = ""
        with contextlib.suppress(httpx2.RemoteProtocolError):
            async with client.stream("POST", TEXT, content="{}") as response:
                async for piece in response.aiter_text():
                    text += piece
        assert text == "data: one\n\n"
        assert len(found[0].seen) + len(found[1].seen) == 1


async def test_a_request_that_kills_machines_kills_two_at_most(tmp_path: Path) -> None:
    async with machines("abcd") as found, balanced(tmp_path, found) as client:
        for machine in found:
            machine.behaviour = "dies"
        response = await client.post(TEXT, content="{}")
        assert (response.status_code, response.json()["error"]["code"]) == (502, "server_unavailable")
        assert sum(len(machine.seen) for machine in found) == 2


async def test_when_all_refuse_the_client_is_told_so_in_openais_form(tmp_path: Path) -> None:
    async with machines("ab") as found, balanced(tmp_path, found) as client:
        for machine in found:
            machine.behaviour = "refuses"
        statuses = []
        for _ in range(3):
            response = await client.post(TEXT, content="{}")
            assert response.json()["error"]["code"] in ("instance_draining", "server_unavailable")
            statuses.append(response.status_code)
        assert statuses[0] == 503 and set(statuses) <= {502, 503}
        assert (await client.get("/readyz")).status_code in (502, 503)
        found[1].behaviour = "answers"
        await until_ok(client)  # after fail_timeout


async def test_machines_are_known_by_their_self_signed_certificates(tmp_path: Path) -> None:
    """Balancer, TLS, the machine's own NGINX, its server; and a machine with a certificate that nobody knows."""
    inner, outer, other = (tmp_path / name for name in ("inner", "outer", "other"))
    for folder in (inner, outer, other):
        folder.mkdir()
    async with machines("a") as found, AsyncExitStack() as stack:
        port = int(found[0].url.rpartition(":")[2])
        settings = Settings(server=ServerSettings(port=port, allow_unauthenticated=True))
        machine = await stack.enter_async_context(running_nginx(machine_front(settings), inner))
        stranger = layout_in(other).certificate
        for folder, ca, status in ((outer, machine.layout.certificate, 200), (other / "front", stranger, 502)):
            folder.mkdir(exist_ok=True)
            front = balancer_front(settings, [machine.url], upstream_ca=ca)
            nginx = await stack.enter_async_context(running_nginx(front, folder))
            client = await stack.enter_async_context(client_of(nginx, http2=True))
            response = await client.post(TEXT, content="{}", headers={"X-Request-Id": "trace-9"})
            assert response.status_code == status, response.text
            if status == 200:
                assert response.json() == {"machine": "a", "id": "trace-9"}


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a condition that should come true did not")


async def until_ok(client: httpx2.AsyncClient) -> None:
    for _ in range(200):
        response = await client.post(TEXT, content="{}")
        if response.status_code == 200:
            assert json.loads(response.text)["machine"] == "b"
            return
        await asyncio.sleep(0.1)
    raise AssertionError(response.text)
