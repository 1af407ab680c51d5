from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.config import ModelSettings, Settings, settings_to_json
from appliance.engine.client import EngineClient
from appliance.engine.supervisor import EngineSupervisor
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest

NULL_ENGINE = Path(__file__).parent / "null_engine.py"


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for `condition`, which something else makes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def request(request_id: str, prompt: list[int], max_tokens: int = 4, trace: bool = False) -> AddRequest:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=1)
    return AddRequest(request_id, prompt, sampling, arrival_time=time.time(), trace=trace)


@dataclasses.dataclass
class RunningEngine:
    socket: Path
    supervisor: EngineSupervisor
    client: EngineClient
    exits: list[tuple[str, bool]]


@asynccontextmanager
async def running_engine(folder: Path, model: str = "counting") -> AsyncIterator[RunningEngine]:
    """A supervised engine process with the counting model, and a client that connects to it."""
    settings_file, socket = folder / "settings.json", folder / "engine.sock"
    settings_file.write_bytes(settings_to_json(Settings(model=ModelSettings(model=model))))
    command = [sys.executable, str(NULL_ENGINE), "--socket", str(socket), "--settings", str(settings_file)]
    client = EngineClient(socket, heartbeat_interval=0.1)
    exits: list[tuple[str, bool]] = []

    def on_exit(reason: str, final: bool) -> None:
        exits.append((reason, final))
        client.report_exit(reason, final)

    supervisor = EngineSupervisor(command, on_exit=on_exit)
    await supervisor.start()
    await client.start()
    try:
        yield RunningEngine(socket, supervisor, client, exits)
    finally:
        await client.close()
        await supervisor.stop()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[RunningEngine]:
    async with running_engine(tmp_path) as running:
        await until(running.client.is_ready)
        yield running
