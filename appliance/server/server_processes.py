"""The parent of several server processes: accepts connections, hands them out, keeps the processes running."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import mmap
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.config import Settings, settings_to_json
from appliance.keys.usage import KeyUsage
from appliance.server.admission import WaitingCounts
from appliance.server.control import (
    CancelDrain,
    Drain,
    Drained,
    EngineExit,
    OwnMetrics,
    ReloadKeys,
    ScrapeMetrics,
    TokenizerLoaded,
    ToParent,
    ToProcess,
    frame,
    messages,
    to_parent,
)
from appliance.server.listening import SETTLE_SECONDS, Listening, listen
from appliance.server.metrics_exchange import MetricsExchange

log = logging.getLogger(__name__)

ACCEPTS_AT_ONCE = 64
FIRST_RESTART_SECONDS = 0.1
LONGEST_RESTART_SECONDS = 30.0
STABLE_SECONDS = 60.0  # one that lived this long did not fail at its start: begin again with the short wait
GRACE_SECONDS = 10.0  # from the end of its control channel until a process is killed
OUT_OF_FILES_SECONDS = 1.0


class ServerProcesses:
    """Several server processes behind one address, all in front of the same engine.

    Connections go out in turn to the processes that are ready. Sharing the listening socket instead would give most of
    a burst of connections to whichever process wakes first, and SO_REUSEPORT deals them out by chance, has no
    equivalent for Unix sockets, and loses those that wait for a process when it dies.
    """

    def __init__(self, settings: Settings, engine_socket: Path, folder: Path, count: int) -> None:
        """`folder` is for files of these processes alone."""
        self._settings = settings
        self._listening: Listening | None = None
        shared = folder / "waiting"
        shared.write_bytes(bytes(WaitingCounts.bytes_for(count)))
        with shared.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        usage = folder / "key-usage"
        KeyUsage.create(usage, count)
        command = [
            *(sys.executable, "-m", "appliance.server.server_process", "--engine-socket", str(engine_socket)),
            *("--waiting", str(shared), "--key-usage", str(usage), "--processes", str(count)),
        ]
        self._key_usage = KeyUsage.shared(usage, 0, count)
        self._processes = [
            _Process(number, settings, command, WaitingCounts(memory, number), self) for number in range(count)
        ]
        self._metrics = MetricsExchange()
        self._handed_out = 0  # connections
        self._engine_exit: EngineExit | None = None  # only when it was for good
        self._drain: Drain | None = None  # while they drain
        self._num_drains = 0
        self._settled_at = 0.0  # until then connections wait for a process that is ready
        self.stopping = False

    async def start(self, inherited: Sequence[socket.socket] = ()) -> str:
        """Listen, at `inherited` sockets if there are any, and start the processes; returns the URL. Raises OSError or
        ssl.SSLError."""
        self._listening = listen(self._settings.server, inherited)
        if self._listening.outlives_us:
            self._settled_at = time.monotonic() + SETTLE_SECONDS
            asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._accept_again)
        for process in self._processes:
            process.start()
        return self._listening.url

    def engine_exited(self, reason: str, final: bool) -> None:
        """As `EngineSupervisor` reports it."""
        report = EngineExit(reason, final)
        self._engine_exit = report if final else None
        for process in self._processes:
            process.send(report)

    def reload_keys(self) -> None:
        for process in self._processes:
            process.send(ReloadKeys())

    def describe(self) -> str:
        """What they do, in one line for people."""
        ready = sum(process.is_ready for process in self._processes)
        return (
            f"{'Serving' if self._drain is None else 'Draining'}: {ready} of {len(self._processes)} processes are ready"
        )

    def drain(self, deadline: float, *, final: bool) -> None:
        """Have all processes drain."""
        self.stopping = final
        leave = final and self._listening is not None and self._listening.outlives_us
        if leave:
            self._stop_accepting()
        if self._drain is None:
            self._num_drains += 1
            for process in self._processes:
                process.begins_to_drain(self._num_drains)
        self._drain = Drain(self._num_drains, deadline, leave)
        for process in self._processes:
            process.send(self._drain)

    def cancel_drain(self) -> None:
        self._drain = None
        for process in self._processes:
            process.send(CancelDrain())

    async def drained(self) -> None:
        """Returns when all processes have drained."""
        await asyncio.gather(*(process.drained.wait() for process in self._processes))

    async def stop(self) -> None:
        """End all processes."""
        self.stopping = True
        if self._listening is not None:
            self._stop_accepting()
            self._listening.close()
            self._listening = None
        await asyncio.gather(*(process.stop() for process in self._processes))

    def began(self, process: _Process) -> None:
        self._metrics.began(process.number, process.send)
        if self._engine_exit is not None:
            process.send(self._engine_exit)
        if self._drain is not None:
            process.send(self._drain)
            if self._drain.leave:
                return
        self._accept_again()

    def is_ready(self) -> None:
        """A process became ready."""
        self._accept_again()

    def ended(self, process: _Process) -> None:
        self._metrics.ended(process.number)
        self._key_usage.forget_process(process.number)

    def received(self, process: _Process, message: ToParent) -> None:
        match message:
            case ScrapeMetrics(ticket):
                self._metrics.scrape(process.number, ticket)
            case OwnMetrics(ticket, families):
                self._metrics.answered(process.number, ticket, families)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            candidates = self._candidates()
            if not candidates:  # connections wait in the kernel for one
                self._stop_accepting()
                return
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:  # no file descriptor is left
                log.error("A connection could not be accepted: %s", error)
                self._stop_accepting()
                asyncio.get_running_loop().call_later(OUT_OF_FILES_SECONDS, self._accept_again)
                return
            self._handed_out += 1
            with connection:
                if not any(process.give(connection) for process in candidates):
                    log.error("A connection was closed because no server process takes any")

    def _accept_again(self) -> None:
        listening = self._listening
        if listening is None or (self.stopping and listening.outlives_us):
            return
        for listener in listening.sockets:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _stop_accepting(self) -> None:
        for listener in () if self._listening is None else self._listening.sockets:
            asyncio.get_running_loop().remove_reader(listener)

    def _candidates(self) -> list[_Process]:
        """Whom to offer a connection, in this order: the ready ones in turn. Until one is ready, the first that runs,
        so that those who ask whether the server is ready see it become so once."""
        turn = self._handed_out % len(self._processes)
        in_turn = [*self._processes[turn:], *self._processes[:turn]]
        ready = [process for process in in_turn if process.is_ready]
        if ready or time.monotonic() < self._settled_at:
            return ready
        return [process for process in self._processes if process.is_running]


class _Process:
    """One place for a server process, and the process that has it now."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        command: list[str],
        waiting: WaitingCounts,
        parent: ServerProcesses,
    ) -> None:
        self.number = number
        self.is_ready = False
        self.drained = asyncio.Event()  # nothing runs in it that a drain waits for
        self._drain_number = 0
        self._settings = _for_process(settings, number)
        self._command = [*command, "--number", str(number)]
        self._waiting = waiting
        self._parent = parent
        self._process: asyncio.subprocess.Process | None = None
        self._control: asyncio.StreamWriter | None = None
        self._connections: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        return self._connections is not None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_running(), name=f"server-process-{self.number}")

    async def stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._task is None:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._task), GRACE_SECONDS if self.is_running else 0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def send(self, message: ToProcess) -> None:
        if self._control is not None:
            self._control.write(frame(message))

    def begins_to_drain(self, number: int) -> None:
        """The drain of this number is about to be sent."""
        self._drain_number = number
        if self.is_running:
            self.drained.clear()

    def give(self, connection: socket.socket) -> bool:
        """Hand `connection` over; the caller still closes its own. False if the process does not take it."""
        if self._connections is None:
            return False
        try:
            socket.send_fds(self._connections, [b"\0"], [connection.fileno()])
        except OSError:  # it has ended, or takes nothing out of its socket
            return False
        return True

    async def _keep_running(self) -> None:
        wait = FIRST_RESTART_SECONDS
        while True:
            began = time.monotonic()
            code = await self._run_once()
            if self._parent.stopping:
                return
            if time.monotonic() - began > STABLE_SECONDS:
                wait = FIRST_RESTART_SECONDS
            log.error("Server process %d ended with exit code %d. Starting it again", self.number, code)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_RESTART_SECONDS)

    async def _run_once(self) -> int:
        """The exit code; negative: the signal that killed it."""
        control, its_control = socket.socketpair()
        connections, its_connections = socket.socketpair()
        connections.setblocking(False)
        with its_control, its_connections:
            descriptors = (its_control.fileno(), its_connections.fileno())
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *("--control", str(descriptors[0]), "--connections", str(descriptors[1])),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=descriptors,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent, which then ends all in order
            )
        try:
            assert process.stdin is not None
            process.stdin.write(settings_to_json(self._settings))
            process.stdin.close()
            reader, self._control = await asyncio.open_unix_connection(sock=control)
            self._connections = connections
            self.drained.clear()
            self._parent.began(self)
            async for message in messages(reader, to_parent):
                self._received(message)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            self._has_ended(connections)

    def _received(self, message: ToParent) -> None:
        match message:
            case TokenizerLoaded():
                self.is_ready = True
                self._parent.is_ready()
            case Drained(number):
                if number == self._drain_number:
                    self.drained.set()
            case _:
                self._parent.received(self, message)

    def _has_ended(self, connections: socket.socket) -> None:
        self.is_ready = False
        self.drained.set()
        self._waiting.clear()
        if self._control is not None:
            self._control.close()
        self._control = self._connections = self._process = None
        connections.close()
        self._parent.ended(self)


def _for_process(settings: Settings, number: int) -> Settings:
    """The periodic line about the engine is the same in all processes, so one of them writes it."""
    quiet = settings.server.disable_log_stats or number > 0
    return dataclasses.replace(settings, server=dataclasses.replace(settings.server, disable_log_stats=quiet))
