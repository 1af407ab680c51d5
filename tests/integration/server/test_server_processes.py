"""Two server processes behind one address, in front of one engine process: real sockets, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import KEY

# `serve` as `pagebox serve` runs it, but for an engine whose model counts.
PROGRAM = """
import asyncio, json, sys, uvloop
import appliance.server.serve as module
from appliance.log_format import configure_logging
from tests.integration.server.harness import settings_with

def command(socket, settings_file):
    original = module.engine_command(socket, settings_file)
    return [sys.executable, "-m", "tests.integration.engine.null_engine", *original[3:]]

settings = settings_with(model="counting", api_server_count=2, **json.loads(sys.argv[1]))
configure_logging("text")
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    run = module.serve(settings, on_listening=lambda url: print(url, flush=True), engine_command=command)
    runner.run(run)
"""
SLOW = 903  # prompts with this token id take 20 ms a step


@dataclass
class Served:
    process: asyncio.subprocess.Process
    url: str
    log: Path
    uds: str | None

    def session(self) -> aiohttp.ClientSession:
        """One connection, kept."""
        connector = aiohttp.TCPConnector(limit=1) if self.uds is None else aiohttp.UnixConnector(self.uds, limit=1)
        headers = {"Authorization": f"Bearer {KEY}"}
        return aiohttp.ClientSession("http://server" if self.uds else self.url, connector=connector, headers=headers)

    def servers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "appliance.server.server_process" in child.cmdline()]


@asynccontextmanager
async def served(folder: Path, uds: str | None = None, **options: Any) -> AsyncIterator[Served]:
    byte_tokenizer().pretrained.save_pretrained(folder / "tokenizer")
    options = {"tokenizer": str(folder / "tokenizer"), "api_key": [KEY], "drain_timeout": 20, "uds": uds, **options}
    log = folder / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, json.dumps(options)),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # without a terminal SIGHUP is no hang-up
        )
    assert process.stdout is not None
    running = Served(process, (await process.stdout.readline()).decode().strip(), log, uds)
    try:
        await ready_on_new_connections(running)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready_on_new_connections(running: Served) -> None:
    """Four in a row, each on a new connection: both processes are ready and take connections."""
    in_a_row = 0
    for _ in range(1000):
        async with running.session() as session, session.get("/readyz") as response:
            in_a_row = in_a_row + 1 if response.status == 200 and len(running.servers()) == 2 else 0
        if in_a_row == 4:
            return
        await asyncio.sleep(0.03)
    raise AssertionError(running.log.read_text())


async def complete(session: aiohttp.ClientSession, prompt: list[int], max_tokens: int) -> int:
    body = {"prompt": prompt, "max_tokens": max_tokens}
    async with session.post("/v1/completions", json=body) as response:
        await response.read()
        return response.status


async def stream(session: aiohttp.ClientSession, max_tokens: int, begun: asyncio.Event) -> str:
    """All that came, up to the end or to the break."""
    text = b""
    body = {"prompt": [SLOW, 64], "max_tokens": max_tokens, "stream": True}
    async with session.post("/v1/completions", json=body) as response:
        assert response.status == 200
        try:
            async for data in response.content.iter_any():
                text += data
                begun.set()
        except aiohttp.ClientPayloadError:
            text += b"(broken)"
    return text.decode()


async def two_streams(
    stack: AsyncExitStack, running: Served, max_tokens: int
) -> tuple[list[aiohttp.ClientSession], list[asyncio.Task[str]]]:
    """One at each process, both under way."""
    sessions = [await stack.enter_async_context(running.session()) for _ in range(2)]
    begun = [asyncio.Event() for _ in sessions]
    tasks = [
        asyncio.create_task(stream(session, max_tokens, event)) for session, event in zip(sessions, begun, strict=True)
    ]
    await asyncio.gather(*(event.wait() for event in begun))
    return sessions, tasks


async def scrape(session: aiohttp.ClientSession) -> dict[str, float]:
    """The sum over the series of each sample."""
    sums: dict[str, float] = {}
    async with session.get("/metrics") as response:
        for family in text_string_to_metric_families(await response.text()):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


async def test_two_processes_share_the_connections_and_survive_each_other(tmp_path: Path) -> None:
    async with served(tmp_path) as running, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(running.session()) for _ in range(4)]
        before = await scrape(sessions[0])
        assert (
            await asyncio.gather(*(complete(session, [64 + i], 5) for i, session in enumerate(sessions))) == [200] * 4
        )
        connections = [len(p.net_connections("tcp")) for p in running.servers()]
        assert connections == [2, 2]

        await asyncio.sleep(1.2)  # each process hears of the engine's steps for others once a second
        after = [await scrape(session) for session in sessions]
        gained = [{name: round(value - before.get(name, 0.0), 6) for name, value in one.items()} for one in after]
        for gain in gained:
            assert gain["vllm:request_generation_tokens_sum"] == 20  # counted by two processes
            assert gain["vllm:request_generation_tokens_count"] == 4
            assert gain["pagebox:requests_total"] == 4
            assert gain["vllm:generation_tokens_total"] == 20  # counted by the one engine
            assert gain["vllm:iteration_tokens_total_count"] == gain["pagebox:engine_steps_total"]
            assert gain["vllm:iteration_tokens_total_sum"] == 20
        assert after[0]["pagebox:build_info"] == 1

        _, tasks = await two_streams(stack, running, 80)
        victim, survivor = running.servers()
        victim.kill()
        ends = sorted(text[-20:] for text in await asyncio.gather(*tasks))
        assert ends[0].endswith("(broken)") != ends[1].endswith("(broken)"), ends
        assert sum(text.endswith("data: [DONE]\n\n") for text in ends) == 1
        await ready_on_new_connections(running)
        assert survivor in running.servers() and victim not in running.servers()
        async with running.session() as session:
            assert await complete(session, [64], 5) == 200
            now = await scrape(session)
        assert now["vllm:request_generation_tokens_count"] == after[0]["vllm:request_generation_tokens_count"] + 2
        assert "Traceback" not in running.log.read_text()


async def test_sigterm_drains_all_processes_behind_a_unix_socket(tmp_path: Path) -> None:
    async with served(tmp_path, uds=str(tmp_path / "http.sock")) as running, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(running.session()) for _ in range(2)]
        for session in idle:
            assert await complete(session, [64], 1) == 200
        _, tasks = await two_streams(stack, running, 40)
        servers = running.servers()
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        for session in idle:
            async with session.get("/readyz") as response:
                assert (response.status, response.headers["Connection"]) == (503, "close")
        assert [text.endswith("data: [DONE]\n\n") for text in await asyncio.gather(*tasks)] == [True, True]
        assert await running.process.wait() == 0
        assert [process.is_running() for process in servers] == [False, False]
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_a_second_signal_hurries_and_no_process_outlives_its_parent(tmp_path: Path, signum: int) -> None:
    async with served(tmp_path) as running, AsyncExitStack() as stack:
        _, tasks = await two_streams(stack, running, 400)
        processes = psutil.Process(running.process.pid).children()
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        running.process.send_signal(signum)
        texts = await asyncio.gather(*tasks)
        if signum == signal.SIGTERM:
            assert all("instance_draining" in text and "resume" in text for text in texts)
        await running.process.wait()
        _, alive = psutil.wait_procs(processes, timeout=10)
        assert alive == []
