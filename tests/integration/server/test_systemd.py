"""The server as systemd runs it: with a socket that outlives it, in front of an engine that is not its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from appliance.config import ModelSettings, Settings, settings_to_json
from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import KEY

# `serve` as `pagebox serve` runs it. It has to have the process id that LISTEN_PID names, hence no parent between.
PROGRAM = """
import asyncio, json, os, sys, uvloop
import appliance.server.serve as module
from appliance.log_format import configure_logging
from tests.integration.server.harness import settings_with

os.dup2(int(sys.argv[2]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}
configure_logging("text")
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(module.serve(settings_with(model="counting", **json.loads(sys.argv[1]))))
"""
SLOW = 903  # prompts with this token id take 20 ms a step


@dataclass
class Systemd:
    """Holds the listening socket, starts servers on it, and hears what they say."""

    folder: Path
    processes: int
    messages: asyncio.Queue[dict[str, str]] = field(default_factory=asyncio.Queue)
    server: asyncio.subprocess.Process | None = None

    def __post_init__(self) -> None:
        byte_tokenizer().pretrained.save_pretrained(self.folder / "tokenizer")
        self.path = str(self.folder / "server.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.folder / "notify"))
        self.notify.setblocking(False)

    async def start(self) -> asyncio.subprocess.Process:
        options = {
            "tokenizer": str(self.folder / "tokenizer"),
            "api_key": [KEY],
            "api_server_count": self.processes,
            "engine_socket": str(self.folder / "engine.sock"),
        }
        self.server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, json.dumps(options), str(self.listener.fileno())),
            pass_fds=[self.listener.fileno()],
            env=os.environ | {"NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "600000"},
        )
        return self.server

    async def heard(self, name: str, value: str | None = None) -> dict[str, str]:
        """The next message with this assignment."""
        async with asyncio.timeout(30):
            while True:
                message = await self.messages.get()
                if name in message and value in (None, message[name]):
                    return message

    def hear(self) -> None:
        text = self.notify.recv(65536).decode()
        self.messages.put_nowait(dict(line.split("=", 1) for line in text.split("\n")))

    def client(self) -> aiohttp.ClientSession:
        """A connection for each request: what is sent into one that the server closes just then is lost with it."""
        return aiohttp.ClientSession(
            "http://server",
            connector=aiohttp.UnixConnector(self.path, force_close=True),
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=aiohttp.ClientTimeout(30),
        )

    async def until_ready(self) -> None:
        async with self.client() as http, asyncio.timeout(30):
            while (await http.get("/readyz")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    settings = tmp_path / "settings.json"
    settings.write_bytes(settings_to_json(Settings(model=ModelSettings(model="counting"))))
    command = [sys.executable, "-m", "tests.integration.engine.null_engine", "--socket", str(tmp_path / "engine.sock")]
    process = subprocess.Popen([*command, "--settings", str(settings)])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
async def systemd(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Systemd]:
    systemd = Systemd(tmp_path, request.param)
    asyncio.get_running_loop().add_reader(systemd.notify, systemd.hear)
    yield systemd
    if systemd.server is not None and systemd.server.returncode is None:
        systemd.server.kill()
        await systemd.server.wait()
    asyncio.get_running_loop().remove_reader(systemd.notify)
    systemd.listener.close()
    systemd.notify.close()


async def ask(http: aiohttp.ClientSession, max_tokens: int = 4) -> int:
    async with http.post("/v1/completions", json={"prompt": [SLOW, 64], "max_tokens": max_tokens}) as response:
        await response.read()
        return response.status


async def test_a_restart_under_load_loses_no_request(engine: subprocess.Popen[bytes], systemd: Systemd) -> None:
    server = await systemd.start()
    await systemd.heard("READY")
    await systemd.until_ready()
    statuses: list[int] = []
    going = True

    async def load() -> None:
        async with systemd.client() as http:
            while going:
                statuses.append(await ask(http))

    clients = [asyncio.create_task(load()) for _ in range(4)]
    async with systemd.client() as http:
        running = asyncio.create_task(ask(http, max_tokens=40))
        await asyncio.sleep(0.3)
        server.send_signal(signal.SIGTERM)
        assert "EXTEND_TIMEOUT_USEC" in await systemd.heard("EXTEND_TIMEOUT_USEC")
        assert await running == 200  # what ran is finished by the server that goes
    assert await server.wait() == 0
    before = len(statuses)
    server = await systemd.start()
    await systemd.until_ready()
    await asyncio.sleep(0.5)
    going = False
    await asyncio.gather(*clients)
    assert len(statuses) > before
    # One that was accepted in the very moment before may be refused, as by any server that drains; none that waited.
    assert set(statuses[before:]) == {200}
    assert statuses.count(503) <= len(clients)
    assert set(statuses) <= {200, 503}
    server.send_signal(signal.SIGTERM)
    assert await server.wait() == 0


async def test_the_status_tells_what_the_engine_does_and_the_watchdog_is_fed(
    engine: subprocess.Popen[bytes], systemd: Systemd
) -> None:
    if systemd.processes > 1:
        pytest.skip("the parent of several processes does not speak to the engine")
    server = await systemd.start()
    await systemd.heard("READY")
    await systemd.heard("STATUS", "Ready: 0 running, 0 waiting")
    await systemd.heard("WATCHDOG")
    engine.kill()
    assert "engine" in (await systemd.heard("STATUS"))["STATUS"]
    server.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC" in await systemd.heard("RELOADING")
    await systemd.heard("READY")
    server.send_signal(signal.SIGTERM)
    await systemd.heard("STOPPING")
    assert await server.wait() == 0
