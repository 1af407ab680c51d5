"""A real NGINX in front of a real server process's HTTP application on a Unix socket; the engine computes nothing."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from appliance.front.description import Front, machine_front
from appliance.text.tokenizer import Tokenizer
from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import KEY, Server, running_server, settings_with
from tests.support.nginx import RunningNginx, program, running_nginx


@dataclass
class FrontedServer:
    nginx: RunningNginx
    server: Server
    http1: httpx2.AsyncClient
    http2: httpx2.AsyncClient

    @property
    def clients(self) -> dict[str, httpx2.AsyncClient]:
        return {"HTTP/1.1": self.http1, "HTTP/2": self.http2}


StartFront = Callable[..., Awaitable[FrontedServer]]


def client_of(nginx: RunningNginx, *, http2: bool, key: str = KEY) -> httpx2.AsyncClient:
    """Trusts the front's certificate and nothing else."""
    context = ssl.create_default_context(cafile=str(nginx.layout.certificate))
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.AsyncClient(base_url=nginx.url, verify=context, http2=http2, headers=headers, timeout=20)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
async def start(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[StartFront]:
    """`await start(change=lambda front: …, key_rate=…, **settings)`."""
    if program() is None:
        pytest.skip("needs NGINX: `make setup` fetches it where there is apt; or install nginx-light")
    async with AsyncExitStack() as stack:

        async def begin(
            *, change: Callable[[Front], Front] = lambda front: front, key_rate: int = 200, **options: Any
        ) -> FrontedServer:
            uds = str(tmp_path / "http.sock")
            engine_socket = tmp_path / "engine.sock"
            engine_ready = options.pop("engine_ready", True)
            server = await stack.enter_async_context(
                running_server(engine_socket, tokenizer, engine_ready=engine_ready, uds=uds, **options)
            )
            settings = settings_with(uds=uds, allow_unauthenticated=True, **options)
            front = change(machine_front(settings, key_rate=key_rate))
            nginx = await stack.enter_async_context(running_nginx(front, tmp_path))
            clients = [await stack.enter_async_context(client_of(nginx, http2=http2)) for http2 in (False, True)]
            return FrontedServer(nginx, server, *clients)

        yield begin


@pytest.fixture
async def fronted(start: StartFront) -> FrontedServer:
    return await start(api_key=(KEY,))
