"""`pagebox serve`: one server process or several, and the engine process that is kept running behind them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import signal
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Protocol

from appliance.config import Settings, settings_to_json
from appliance.engine.client import EngineClient
from appliance.engine.supervisor import EngineSupervisor, engine_command
from appliance.server.app import create_app
from appliance.server.http_server import HttpServer
from appliance.server.listening import listen
from appliance.server.process_count import process_count
from appliance.server.server_processes import ServerProcesses
from appliance.text.load_tokenizer import load_tokenizer

log = logging.getLogger(__name__)


class Front(Protocol):
    """What speaks HTTP."""

    async def start(self) -> str:
        """Listen; returns the URL. Raises OSError or ssl.SSLError."""
        ...

    def engine_exited(self, reason: str, final: bool) -> None: ...

    async def drain(self) -> None: ...

    async def stop(self) -> None: ...


class InThisProcess:
    """The `Front` of a single process."""

    def __init__(self, settings: Settings, engine_socket: Path) -> None:
        self._settings = settings
        self._client = EngineClient(engine_socket)
        self._server = HttpServer(create_app(settings, self._client, functools.partial(load_tokenizer, settings)))

    async def start(self) -> str:
        listening = listen(self._settings.server)
        await self._server.start(listening)
        await self._client.start()
        return listening.url

    def engine_exited(self, reason: str, final: bool) -> None:
        self._client.report_exit(reason, final=final)

    async def drain(self) -> None:
        await self._server.drain()

    async def stop(self) -> None:
        await self._server.stop()
        await self._client.close()


async def serve(
    settings: Settings,
    *,
    on_listening: Callable[[str], None] | None = None,
    engine_command: Callable[[Path, Path], list[str]] = engine_command,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends the drain at once.

    `on_listening` gets the URL as soon as connections are accepted, before the model is loaded. `engine_command` makes
    the command that starts an engine, from its socket and its settings file.
    """
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    with tempfile.TemporaryDirectory(prefix="pagebox-") as name:
        folder = Path(name)
        socket, settings_file = folder / "engine.sock", folder / "settings.json"
        settings_file.write_bytes(settings_to_json(_without_secrets(settings)))
        count = process_count(settings.server)
        front = _front(settings, socket, folder, count)
        supervisor = EngineSupervisor(engine_command(socket, settings_file), on_exit=front.engine_exited)
        try:
            url = await front.start()
            if not settings.server.api_key:
                log.warning("No api-key is set: whoever reaches %s may use the model", url)
            log.info("Listening on %s%s", url, f" with {count} server processes" if count > 1 else "")
            if on_listening is not None:
                on_listening(url)
            await supervisor.start()
            await stop.wait()
            await _first_of(front.drain(), hurry.wait())
        finally:
            # the engine first: streams that still run end with an error from it instead of a cut connection
            await supervisor.stop()
            await front.stop()


def _front(settings: Settings, engine_socket: Path, folder: Path, count: int) -> Front:
    if count == 1:
        return InThisProcess(settings, engine_socket)
    return ServerProcesses(settings, engine_socket, folder, count)


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _without_secrets(settings: Settings) -> Settings:
    """The engine has no need of the API keys, so its settings file has none."""
    return dataclasses.replace(settings, server=dataclasses.replace(settings.server, api_key=()))
