"""The server process as a whole: it starts its engine, drains at SIGTERM, and leaves no process behind."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import psutil

from tests.integration.server.harness import eventually

# `serve` as `pagebox serve` runs it, but for an engine whose model counts and the tokenizer of the tests.
PROGRAM = """
import asyncio, sys, uvloop
import appliance.server.serve as module
from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import settings_with

def command(socket, settings_file):
    original = module.engine_command(socket, settings_file)
    return [sys.executable, "-m", "tests.integration.engine.null_engine", *original[3:]]

module.load_tokenizer = lambda settings: byte_tokenizer()
settings = settings_with(model="counting", api_key=("secret-key",), drain_timeout=10)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    run = module.serve(settings, on_listening=lambda url: print(url, flush=True), engine_command=command)
    runner.run(run)
"""
SLOW = 903  # prompts with this token id take 20 ms a step


async def test_serve_starts_an_engine_and_drains_at_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM), stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    assert url.startswith("http://127.0.0.1:"), log.read_text()
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer secret-key"}) as http:

        async def status(path: str) -> int:
            async with http.get(url + path) as response:
                return response.status

        async def ask(max_tokens: int) -> int:
            body = {"prompt": [SLOW, 64], "max_tokens": max_tokens}
            async with http.post(url + "/v1/completions", json=body) as response:
                return response.status

        assert await status("/livez") == 200  # whatever the engine does
        for _ in range(600):
            if await status("/readyz") == 200:
                break
            await asyncio.sleep(0.05)
        engines = psutil.Process(process.pid).children(recursive=True)
        assert len(engines) == 1
        settings_file = Path(engines[0].cmdline()[engines[0].cmdline().index("--settings") + 1])
        assert "secret-key" not in settings_file.read_text()
        running = asyncio.create_task(ask(30))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert await running == 200
    assert await process.wait() == 0, log.read_text()
    await eventually(lambda: not engines[0].is_running() or engines[0].status() == psutil.STATUS_ZOMBIE)
    assert not settings_file.exists()
    assert "Traceback" not in log.read_text()
