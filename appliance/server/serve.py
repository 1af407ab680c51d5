"""The server process: the HTTP server, and the engine process that it keeps running."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import signal
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from appliance.config import Settings, settings_to_json
from appliance.engine.client import EngineClient
from appliance.engine.supervisor import EngineSupervisor, engine_command
from appliance.server.app import create_app
from appliance.server.http_server import HttpServer
from appliance.text.load_tokenizer import load_tokenizer

log = logging.getLogger(__name__)


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
    with tempfile.TemporaryDirectory(prefix="pagebox-") as folder:
        socket, settings_file = Path(folder, "engine.sock"), Path(folder, "settings.json")
        settings_file.write_bytes(settings_to_json(_without_secrets(settings)))
        client = EngineClient(socket)
        supervisor = EngineSupervisor(
            engine_command(socket, settings_file), on_exit=lambda reason, final: client.report_exit(reason, final=final)
        )
        server = HttpServer(create_app(settings, client, functools.partial(load_tokenizer, settings)))
        try:
            url = await server.start()
            if not settings.server.api_key:
                log.warning("No api-key is set: whoever reaches %s may use the model", url)
            log.info("Listening on %s", url)
            if on_listening is not None:
                on_listening(url)
            await supervisor.start()
            await client.start()
            await stop.wait()
            await _first_of(server.drain(), hurry.wait())
        finally:
            # the engine first: streams that still run end with an error from it instead of a cut connection
            await supervisor.stop()
            await server.stop()
            await client.close()


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _without_secrets(settings: Settings) -> Settings:
    """The engine has no need of the API keys, so its settings file has none."""
    return dataclasses.replace(settings, server=dataclasses.replace(settings.server, api_key=()))
