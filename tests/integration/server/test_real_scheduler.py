"""The server on uvloop, as served, in front of a real engine process: real scheduler and KV cache, counting model."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import openai
import pytest
import uvloop

from appliance.server.app import create_app
from appliance.server.http_server import HttpServer
from appliance.server.listening import listen
from appliance.text.tokenizer import Tokenizer
from tests.integration.engine.conftest import RunningEngine, running_engine
from tests.integration.server.harness import eventually, settings_with

SLOW = 903  # prompts with this token id take 20 ms a step


@dataclasses.dataclass
class Serving:
    url: str
    engine: RunningEngine
    openai: openai.AsyncOpenAI

    async def metric(self, name: str) -> float:
        async with aiohttp.ClientSession() as session, session.get(self.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


@asynccontextmanager
async def serving(folder: Path, tokenizer: Tokenizer) -> AsyncIterator[Serving]:
    async with running_engine(folder) as engine:
        settings = settings_with(model="counting")
        server = HttpServer(create_app(settings, engine.client, lambda: tokenizer))
        listening = listen(settings.server)
        await server.start(listening)
        url = listening.url
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="x", max_retries=0) as client:
            await eventually(engine.client.is_ready)
            yield Serving(url, engine, client)
        await server.stop()


def on_uvloop(folder: Path, tokenizer: Tokenizer, scenario: Callable[[Serving], Awaitable[None]]) -> None:
    async def run() -> None:
        async with serving(folder, tokenizer) as server:
            await scenario(server)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_a_thousand_random_disconnects_leave_the_kv_cache_empty(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Serving) -> None:
        rng = random.Random(11)
        sent = 0

        async def one(session: aiohttp.ClientSession) -> None:
            nonlocal sent
            sent += 1
            prompt = [rng.randrange(800) for _ in range(rng.randint(1, 200))]
            prompt[0] = SLOW if rng.random() < 0.02 else prompt[0]
            body = {"prompt": prompt, "max_tokens": rng.randint(1, 300), "stream": rng.random() < 0.5}
            body |= {"n": rng.choice([1, 1, 2]), "ignore_eos": True}
            try:
                async with (
                    asyncio.timeout(rng.random() * 0.1),
                    session.post(server.url + "/v1/completions", json=body) as reply,
                ):
                    await reply.read()
            except TimeoutError:
                pass

        async def many() -> None:
            async with aiohttp.ClientSession() as session:
                for _ in range(50):
                    await one(session)

        await asyncio.gather(*(many() for _ in range(20)))
        assert sent == 1000
        await eventually(lambda: server.engine.client._streams == {})
        await eventually(lambda: server.engine.client.status.last_step_age is None)
        assert await server.metric("vllm:kv_cache_usage_perc") == 0
        assert await server.metric("vllm:num_requests_running") == 0
        assert await server.metric("vllm:num_requests_waiting") == 0
        reply = await server.openai.completions.create(model="counting", prompt=[1, 2, 64], max_tokens=5)
        assert reply.choices[0].text == "ABCDE"

    on_uvloop(tmp_path, tokenizer, scenario)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_killed_engine_fails_its_requests_clearly_and_comes_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def scenario(server: Serving) -> None:
        async def ask() -> str:
            try:
                await server.openai.completions.create(model="counting", prompt=[SLOW, 64], max_tokens=300)
            except openai.InternalServerError as error:
                return f"{error.status_code} {error.code}"
            return "it ended"

        asks = [asyncio.create_task(ask()) for _ in range(4)]
        await eventually(lambda: server.engine.client.status.stats.num_running == 4)
        pid = server.engine.supervisor.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert await asyncio.gather(*asks) == ["503 engine_unavailable"] * 4
        assert not server.engine.client.is_ready()
        await eventually(server.engine.client.is_ready)
        reply = await server.openai.completions.create(model="counting", prompt=[64], max_tokens=2)
        assert reply.choices[0].text == "AB"

    on_uvloop(tmp_path, tokenizer, scenario)


def test_a_conversation_that_goes_on_is_answered_from_the_prefix_cache(tmp_path: Path, tokenizer: Tokenizer) -> None:
    async def scenario(server: Serving) -> None:
        for expected in (0, 96):
            reply = await server.openai.completions.create(model="counting", prompt=[7] * 100, max_tokens=2)
            assert reply.usage is not None and reply.usage.prompt_tokens_details is not None
            assert reply.usage.prompt_tokens_details.cached_tokens == expected
        assert await server.metric("vllm:prefix_cache_hits_total") == 96

    on_uvloop(tmp_path, tokenizer, scenario)
