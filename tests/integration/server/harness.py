"""A real server on a real port, in front of a null engine on a real Unix socket."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
from aiohttp import web

from appliance.config import Settings
from appliance.engine.client import EngineClient
from appliance.server.app import create_app
from appliance.server.context import CONTEXT, ServerContext
from appliance.server.http_server import HttpServer
from appliance.server.listening import listen
from appliance.text.tokenizer import Tokenizer
from tests.integration.server.null_engine import NullEngine

KEY = "sk-one"


@dataclass
class Server:
    url: str
    engine: NullEngine
    client: EngineClient
    app: web.Application
    http: aiohttp.ClientSession
    openai: openai.AsyncOpenAI
    drain: Callable[[], Awaitable[None]]
    http_server: HttpServer

    @property
    def context(self) -> ServerContext:
        return self.app[CONTEXT]

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        async with self.http.post(self.url + path, json=body, **more) as response:
            return response.status, await response.json()

    async def get(self, path: str, **more: Any) -> tuple[int, str]:
        async with self.http.get(self.url + path, **more) as response:
            return response.status, await response.text()

    async def nothing_is_left(self) -> None:
        """Waits until no request is known anywhere; a leak makes this fail after two seconds."""
        queue = self.context.admission
        await eventually(lambda: not (self.engine.running or self.client._streams or queue.sequences or queue.tokens))


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits for `condition`; fails when it does not come true in five seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("a condition that should come true did not")


@asynccontextmanager
async def running_server(
    socket: Path,
    tokenizer: Tokenizer,
    *,
    engine_ready: bool = True,
    load_tokenizer: Callable[[], Tokenizer] | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    engine = NullEngine(socket)
    await engine.start(ready=engine_ready)
    client = EngineClient(socket, heartbeat_interval=0.05)
    app = create_app(settings_with(**options), client, load_tokenizer or (lambda: tokenizer))
    await client.start()
    http_server = HttpServer(app)
    listening = listen(app[CONTEXT].settings.server)
    await http_server.start(listening)
    url = listening.url.removesuffix(options.get("root_path", ""))
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as openai_client,
    ):

        async def drain() -> None:
            http_server.drain(time.monotonic() + app[CONTEXT].settings.server.drain_timeout)
            await http_server.drained()

        server = Server(url, engine, client, app, http, openai_client, drain, http_server)
        if engine_ready and load_tokenizer is None:
            await eventually(lambda: server.context.not_ready_reason() is None)
        yield server
    await http_server.stop()
    await client.close()
    await engine.stop()


def settings_with(**options: Any) -> Settings:
    """Default settings of a model called `null`, with single settings changed by name."""
    settings = Settings()
    options = {"model": "null", "port": 0, **options}
    for group in dataclasses.fields(settings):
        values = getattr(settings, group.name)
        names = {field.name for field in dataclasses.fields(values)}
        mine = {name: options.pop(name) for name in list(options) if name in names}
        settings = dataclasses.replace(settings, **{group.name: dataclasses.replace(values, **mine)})
    assert not options, f"no such settings: {options}"
    return settings
