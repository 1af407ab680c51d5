"""One of several server processes: `python -m appliance.server.server_process …`, started by `ServerProcesses`.

Its settings come through standard input, as they have the API keys in them. It serves the connections that its parent
hands over, and ends when the parent closes the control channel, or ends. Signals are for the parent to act on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import logging
import mmap
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path

from appliance.config import Settings, settings_from_json
from appliance.engine.client import EngineClient
from appliance.keys.errors import KeysError
from appliance.keys.usage import KeyUsage
from appliance.log_format import configure_logging
from appliance.server import metric_families
from appliance.server.admission import WaitingCounts
from appliance.server.app import create_app
from appliance.server.context import CONTEXT, ServerContext
from appliance.server.control import (
    AllMetrics,
    CancelDrain,
    CollectMetrics,
    Drain,
    Drained,
    EngineExit,
    OwnMetrics,
    ReloadKeys,
    ScrapeMetrics,
    TokenizerLoaded,
    ToProcess,
    frame,
    messages,
    to_process,
)
from appliance.server.http_server import HttpServer
from appliance.text.load_tokenizer import load_tokenizer

log = logging.getLogger(__name__)

SCRAPE_SECONDS = 5.0


class ServerProcess:
    """The application, and its end of the control channel."""

    def __init__(self, settings: Settings, engine_socket: Path, waiting: WaitingCounts, key_usage: KeyUsage) -> None:
        self._client = EngineClient(engine_socket)
        app = create_app(settings, self._client, functools.partial(load_tokenizer, settings), waiting, key_usage)
        self._context: ServerContext = app[CONTEXT]
        self._context.exposition = self._exposition
        self._server = HttpServer(app)
        self._tickets = itertools.count()
        self._scrapes: dict[int, asyncio.Future[AllMetrics]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._drain_number = 0  # of the newest drain

    async def run(self, control: socket.socket, connections: socket.socket) -> None:
        """Serve until the control channel closes."""
        reader, self._writer = await asyncio.open_unix_connection(sock=control)
        await self._server.start()
        await self._client.start()
        self._start(self._tell_when_loaded())
        connections.setblocking(False)
        asyncio.get_running_loop().add_reader(connections, self._take_connections, connections)
        async for message in messages(reader, to_process):
            self._handle(message)
        asyncio.get_running_loop().remove_reader(connections)
        for task in self._tasks:
            task.cancel()
        await self._server.stop()
        await self._client.close()

    def _handle(self, message: ToProcess) -> None:
        match message:
            case EngineExit(reason, final):
                self._client.report_exit(reason, final=final)
            case Drain():
                self._drain(message)
            case CancelDrain():
                self._server.cancel_drain()
            case ReloadKeys():
                self._context.reload_keys()
            case CollectMetrics(ticket):
                own = metric_families.families_of(self._context.metrics.observed)
                self._writer.write(frame(OwnMetrics(ticket, own)))
            case AllMetrics(ticket):
                if ticket in self._scrapes:
                    self._scrapes.pop(ticket).set_result(message)

    def _take_connections(self, connections: socket.socket) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(connections, 1, 1)
            except BlockingIOError:
                return
            for descriptor in descriptors:
                self._server.adopt(socket.socket(fileno=descriptor))
            if not data:  # the parent has closed its end: the control channel will say so
                asyncio.get_running_loop().remove_reader(connections)
                return

    async def _tell_when_loaded(self) -> None:
        if await self._context.tokenizers.loaded():
            self._writer.write(frame(TokenizerLoaded()))

    def _drain(self, message: Drain) -> None:
        self._server.drain(message.deadline)
        if message.leave:
            self._start(self._server.leave())
        if message.number != self._drain_number:
            self._drain_number = message.number
            self._start(self._tell_when_drained(message.number))

    async def _tell_when_drained(self, number: int) -> None:
        await self._server.drained()
        self._writer.write(frame(Drained(number)))

    async def _exposition(self) -> bytes:
        """What all processes counted, and the state of things as this one sees it."""
        ticket = next(self._tickets)
        answer = self._scrapes[ticket] = asyncio.get_running_loop().create_future()
        self._writer.write(frame(ScrapeMetrics(ticket)))
        try:
            families = (await asyncio.wait_for(answer, SCRAPE_SECONDS)).families
        finally:
            self._scrapes.pop(ticket, None)
        return metric_families.exposition(families) + self._context.metrics.state_exposition()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.contextmanager
def _told_why() -> Iterator[None]:
    """What can happen to a process that is started again later: the keys cannot be read by then."""
    try:
        yield
    except KeysError as error:
        log.error("%s", error)
        sys.exit(1)


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(prog="python -m appliance.server.server_process", description="A server process")
    parser.add_argument("--number", type=int, required=True, help="which of the processes this is, from 0")
    parser.add_argument("--engine-socket", type=Path, required=True)
    parser.add_argument("--waiting", type=Path, required=True, help="file that the processes share to count what waits")
    parser.add_argument("--key-usage", type=Path, required=True, help="the same, for what each API key uses")
    parser.add_argument("--processes", type=int, required=True, help="how many of them there are")
    parser.add_argument("--control", type=int, required=True, help="file descriptor of the control channel")
    parser.add_argument("--connections", type=int, required=True, help="file descriptor through which connections come")
    options = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    settings = settings_from_json(sys.stdin.buffer.read())
    configure_logging(settings.server.log_format)
    with options.waiting.open("r+b") as file:
        waiting = WaitingCounts(mmap.mmap(file.fileno(), 0), options.number)
    key_usage = KeyUsage.shared(options.key_usage, options.number, options.processes)
    control, connections = socket.socket(fileno=options.control), socket.socket(fileno=options.connections)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, _told_why():
        runner.run(ServerProcess(settings, options.engine_socket, waiting, key_usage).run(control, connections))


if __name__ == "__main__":
    main()
