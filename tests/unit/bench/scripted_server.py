"""An OpenAI-compatible server whose replies follow a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer


def text(words: str, **more: Any) -> str:
    """A chunk of a completion."""
    return "data: " + json.dumps({"choices": [{"index": 0, "text": words, "finish_reason": None, **more}]}) + "\n\n"


def delta(**fields: Any) -> str:
    """A chunk of a chat completion."""
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}) + "\n\n"


def usage(prompt: int, output: int, cached: int = 0) -> str:
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": {"cached_tokens": cached}}
    return "data: " + json.dumps({"choices": [], "usage": counts}) + "\n\n"


DONE = "data: [DONE]\n\n"
CUT = "cut"  # the connection is closed here


@dataclass
class ScriptedServer:
    """`script` is what a request gets: pieces of a stream, and pauses in seconds between them; or (status, body)."""

    script: list[str | float] | tuple[int, str] = field(default_factory=list)
    models: tuple[int, Any] = (200, {"data": [{"id": "one"}, {"id": "two"}]})
    ready: tuple[int, Any] = (200, {"status": "ok"})
    has_tokenizer: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    url: str = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedServer]:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_post("/v1/chat/completions", self._generate)
        if self.has_tokenizer:
            app.router.add_post("/tokenize", self._tokenize)
        server = TestServer(app)
        await server.start_server()
        self.url = str(server.make_url("")).rstrip("/")
        try:
            yield self
        finally:
            await server.close()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.json_response(self.ready[1], status=self.ready[0])

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(self.models[1], status=self.models[0])

    async def _tokenize(self, request: web.Request) -> web.Response:
        words = (await request.json())["prompt"].split()
        return web.json_response({"tokens": [0, *range(1, len(words) + 1)], "count": len(words) + 1})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        if isinstance(self.script, tuple):
            return web.Response(status=self.script[0], text=self.script[1], content_type="application/json")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.script:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            elif piece == CUT:
                assert request.transport is not None
                request.transport.abort()
            else:
                await response.write(piece.encode())
        self.under_way -= 1
        return response
