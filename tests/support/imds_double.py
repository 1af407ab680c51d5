"""EC2's instance metadata service, version 2, that misbehaves when told to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

SPOT = "meta-data/spot/instance-action"
REBALANCE = "meta-data/events/recommendations/rebalance"
MAINTENANCE = "meta-data/events/maintenance/scheduled"
LIFECYCLE = "meta-data/autoscaling/target-lifecycle-state"
INSTANCE_ID = "i-0123456789abcdef0"
IDENTITY = {
    "meta-data/instance-id": INSTANCE_ID,
    "meta-data/placement/availability-zone": "eu-central-1b",
    "meta-data/placement/region": "eu-central-1",
    "meta-data/local-ipv4": "10.0.0.7",
}


@dataclass
class ImdsDouble:
    """What a test sets, and what it sees."""

    values: dict[str, str | bytes] = field(default_factory=lambda: dict[str, str | bytes](IDENTITY))  # others: 404
    refusals: int = 0  # that many answers to GETs are 401, whatever the token
    status: int | None = None  # the answer to everything
    token_status: int | None = None  # the answer to requests for a token
    token: str | None = None  # given instead of a proper one
    token_seconds: str | None = None  # what a token's header says instead of the asked life
    hangs: bool = False
    breaks_off: bool = False  # closes the connection instead of answering
    tokens_given: int = 0
    without_token: list[str] = field(default_factory=list)  # version 1!
    token_headers: list[list[str]] = field(default_factory=list)  # of each GET
    asked: list[str] = field(default_factory=list)
    url: str = ""
    _valid: set[str] = field(default_factory=set)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def expire_tokens(self) -> None:
        self._valid.clear()

    async def put_token(self, request: web.Request) -> web.StreamResponse:
        await self._misbehave(request)
        seconds = request.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.status or self.token_status:
            return web.Response(status=self.status or self.token_status or 0)
        if not (seconds.isdecimal() and 1 <= int(seconds) <= 21600):
            return web.Response(status=400)
        self.tokens_given += 1
        token = self.token if self.token is not None else f"token-{next(self._numbers)}=="
        self._valid.add(token)
        return web.Response(text=token, headers={"X-aws-ec2-metadata-token-ttl-seconds": self.token_seconds or seconds})

    async def get(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        tokens = request.headers.getall("X-aws-ec2-metadata-token", [])
        self.asked.append(path)
        self.token_headers.append(tokens)
        if not tokens:
            self.without_token.append(path)
        await self._misbehave(request)
        if self.status:
            return web.Response(status=self.status)
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=401)
        if len(tokens) != 1 or tokens[0] not in self._valid:
            return web.Response(status=401)
        if path not in self.values:
            return web.Response(status=404)
        value = self.values[path]
        return web.Response(body=value.encode() if isinstance(value, str) else value)

    async def _misbehave(self, request: web.Request) -> None:
        if self.breaks_off:
            assert request.transport is not None
            request.transport.abort()
        if self.hangs:
            await asyncio.Event().wait()

    @asynccontextmanager
    async def serving(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[ImdsDouble]:
        app = web.Application()
        app.router.add_put("/latest/api/token", self.put_token)
        app.router.add_get("/latest/{path:.+}", self.get)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, host, port).start()
        bound = runner.addresses[0]
        self.url = f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"
        try:
            yield self
        finally:
            await runner.cleanup()
