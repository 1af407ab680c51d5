"""`pagebox serve`: one server process or several, and the engine process that is kept running behind them."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from appliance.config import ServerSettings, Settings, settings_to_json
from appliance.engine.client import EngineClient
from appliance.engine.supervisor import EngineSupervisor, engine_command
from appliance.lifecycle.sd_notify import service_manager
from appliance.lifecycle.socket_activation import inherited_sockets
from appliance.server.admin import AdminServer
from appliance.server.app import create_app
from appliance.server.auth import open_store
from appliance.server.context import CONTEXT
from appliance.server.drain_control import DrainControl, Draining
from appliance.server.http_server import HttpServer
from appliance.server.listening import SETTLE_SECONDS, listen
from appliance.server.process_count import process_count
from appliance.server.server_processes import ServerProcesses
from appliance.server.service import Service
from appliance.text.load_tokenizer import load_tokenizer

log = logging.getLogger(__name__)

HTTP_SOCKET = "http"  # FileDescriptorName= in pagebox-server.socket
ADMIN_SOCKET = "admin"  # and in pagebox-admin.socket
ENGINE_SECONDS = 1.0  # in which an engine that is there has told how it is


class Front(Draining, Protocol):
    """What speaks HTTP."""

    async def start(self, inherited: Sequence[socket.socket]) -> str:
        """Listen, at `inherited` sockets if there are any; returns the URL. Raises OSError or ssl.SSLError."""
        ...

    def describe(self) -> str:
        """What it does, in one line for people."""
        ...

    def engine_exited(self, reason: str, final: bool) -> None: ...

    def reload_keys(self) -> None: ...

    async def stop(self) -> None: ...


class InThisProcess:
    """The `Front` of a single process."""

    def __init__(self, settings: Settings, engine_socket: Path) -> None:
        self._settings = settings
        self._client = EngineClient(engine_socket)
        app = create_app(settings, self._client, functools.partial(load_tokenizer, settings))
        self._context = app[CONTEXT]
        self._server = HttpServer(app)
        self._leaves = False
        self._leaving: asyncio.Task[None] | None = None

    async def start(self, inherited: Sequence[socket.socket]) -> str:
        listening = listen(self._settings.server, inherited)
        self._leaves = listening.outlives_us
        await self._client.start()
        if not self._leaves:
            await self._server.start(listening)
            return listening.url
        await self._server.start()
        await self._settle()
        await self._server.accept(listening)
        return listening.url

    async def _settle(self) -> None:
        """Wait for the tokenizer, if there is an engine that could serve what waits in the sockets."""
        began = time.monotonic()
        while (waited := time.monotonic() - began) < SETTLE_SECONDS and self._context.not_ready_reason() is not None:
            if waited > ENGINE_SECONDS and not self._client.is_ready():
                return
            await asyncio.sleep(0.02)

    def describe(self) -> str:
        status = self._client.status
        if self._context.draining:
            return f"Draining: {status.stats.num_running} running, {status.stats.num_waiting} waiting"
        if self._context.not_ready_reason() is not None:
            percent = "" if status.progress is None else f" ({status.progress:.0%})"
            return f"Not ready: {self._context.not_ready_reason()}{percent}"
        return f"Ready: {status.stats.num_running} running, {status.stats.num_waiting} waiting"

    def engine_exited(self, reason: str, final: bool) -> None:
        self._client.report_exit(reason, final=final)

    def reload_keys(self) -> None:
        self._context.reload_keys()

    def drain(self, deadline: float, *, final: bool) -> None:
        self._server.drain(deadline)
        if final and self._leaves and self._leaving is None:
            self._leaving = asyncio.create_task(self._server.leave())

    def cancel_drain(self) -> None:
        self._server.cancel_drain()

    async def drained(self) -> None:
        await self._server.drained()

    async def stop(self) -> None:
        await self._server.stop()
        await self._client.close()


async def serve(
    settings: Settings,
    *,
    on_listening: Callable[[str], None] | None = None,
    engine_command: Callable[[Path, Path], list[str]] = engine_command,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. A second signal ends what still runs. Drains as well when it is asked
    to at the admin socket, and then goes on answering that it does.

    SIGHUP has the API keys read again, unless there is a terminal to hang up. Started by systemd it listens at the
    socket that comes from there, and says what it does.

    Raises OSError, ssl.SSLError or `KeysError` when it cannot begin.

    `on_listening` gets the URL as soon as connections are accepted, before the model is loaded. `engine_command` makes
    the command that starts an engine, from its socket and its settings file.
    """
    loop = asyncio.get_running_loop()
    manager, inherited = service_manager(), inherited_sockets()
    with tempfile.TemporaryDirectory(prefix="pagebox-") as name:
        folder = Path(name)
        engine_socket = Path(settings.server.engine_socket or folder / "engine.sock")
        count = process_count(settings.server)
        front = _front(settings, engine_socket, folder, count)
        service = Service(manager, front.describe)
        control = DrainControl(front, settings.server.drain_timeout)
        admin = AdminServer(control)

        def on_signal(name: str) -> None:
            service.is_draining(settings.server.drain_timeout)
            control.terminate(name)

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, on_signal, signum.name)
        supervisor = None
        if settings.server.engine_socket is None:
            settings_file = folder / "settings.json"
            settings_file.write_bytes(settings_to_json(_without_secrets(settings)))
            supervisor = EngineSupervisor(engine_command(engine_socket, settings_file), on_exit=front.engine_exited)
        else:
            front.engine_exited(f"Waiting for the engine at {engine_socket}", False)
        try:
            url = await front.start(inherited.get(HTTP_SOCKET, ()))
            await admin.start(settings.server.admin_socket, inherited.get(ADMIN_SOCKET, ()))
            _say_who_may_call(settings.server, url)
            if not _has_terminal():
                loop.add_signal_handler(signal.SIGHUP, service.reload, front.reload_keys)
            log.info("Listening on %s%s", url, f" with {count} server processes" if count > 1 else "")
            service.is_up()
            if on_listening is not None:
                on_listening(url)
            if supervisor is not None:
                await supervisor.start()
            await control.ended()
        finally:
            # the engine first: streams that still run end with an error from it instead of a cut connection
            if supervisor is not None:
                await supervisor.stop()
            await front.stop()
            await admin.stop()
            service.is_gone()


def _front(settings: Settings, engine_socket: Path, folder: Path, count: int) -> Front:
    if count == 1:
        return InThisProcess(settings, engine_socket)
    open_store(settings.server)  # keys with a mistake in them are told here once, not by each process for ever
    return ServerProcesses(settings, engine_socket, folder, count)


def _say_who_may_call(settings: ServerSettings, url: str) -> None:
    if settings.has_keys:
        return
    if settings.uds is not None:
        log.warning("No API keys are configured: whoever may open %s may use the model", settings.uds)
    elif settings.allow_unauthenticated:
        log.warning("No API keys are configured (allow-unauthenticated): whoever reaches %s may use the model", url)
    else:
        log.warning(
            "No API keys are configured, so only this machine may connect (%s). Before others may, set api-key or "
            "api-keys-file",
            url,
        )


def _has_terminal() -> bool:
    """Then SIGHUP says that the terminal is gone, and ends the server as it ends everything else there."""
    try:
        Path("/dev/tty").open("rb").close()
    except OSError:
        return False
    return True


def _without_secrets(settings: Settings) -> Settings:
    """The engine has no need of API keys and webhooks, so its settings file has none."""
    return dataclasses.replace(
        settings,
        server=dataclasses.replace(settings.server, api_key=()),
        watcher=dataclasses.replace(settings.watcher, webhook_url=()),
    )
