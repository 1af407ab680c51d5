"""The server's admin socket, as far as a drain goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass
class AdminDouble:
    """What a test sets, and what it sees."""

    state: str = "serving"
    deadline: str | None = None
    reason: str | None = None
    cancelled: int = 0
    posts: list[dict[str, Any]] = field(default_factory=list)

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response({"state": self.state, "deadline": self.deadline, "reason": self.reason, "running": 1})

    async def post(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.posts.append(body)
        self.state, self.deadline, self.reason = "draining", body["deadline"], body["reason"]
        return await self.get(request)

    async def delete(self, request: web.Request) -> web.Response:
        self.cancelled += 1
        self.state, self.deadline, self.reason = "serving", None, None
        return await self.get(request)

    @asynccontextmanager
    async def serving(self, socket: Path) -> AsyncIterator[AdminDouble]:
        app = web.Application()
        app.router.add_get("/admin/drain", self.get)
        app.router.add_post("/admin/drain", self.post)
        app.router.add_delete("/admin/drain", self.delete)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        try:
            yield self
        finally:
            await runner.cleanup()
