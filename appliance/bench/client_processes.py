"""A load that one process could not follow: several clients, each with its share, and one list of records."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import uvloop

from appliance.bench.client import Record, Target, new_session
from appliance.bench.load import OnFinished, run_load
from appliance.bench.workload import Prompt

REQUESTS_FOR_ONE = 32  # under way at once; one process reads some 25,000 chunks a second
MOST = 8
START_SECONDS = 0.05  # from the word to begin until the first request: every client has heard it by then


class ClientDied(Exception):
    """A client process ended before its work was done."""


def client_processes(requests: int, max_concurrency: int | None) -> int:
    """How many clients follow so many requests without being the limit themselves, on half of this machine's cores."""
    under_way = requests if max_concurrency is None else min(requests, max_concurrency)
    cores = len(os.sched_getaffinity(0))
    return max(1, min(MOST, cores // 2, -(-under_way // REQUESTS_FOR_ONE)))


async def run_load_in_processes(
    processes: int,
    target: Target,
    prompts: Sequence[Prompt],
    departures: Sequence[float],
    max_concurrency: int | None = None,
    on_finished: OnFinished = lambda tokens, failed: None,
) -> list[Record]:
    """As `run_load`, by so many processes: every n-th prompt is one client's, and so is an equal share of
    `max_concurrency`. Clocks need no adjusting: `time.perf_counter` is one clock for all processes of a machine.

    Raises `ClientDied`.
    """
    processes = min(processes, len(prompts), max_concurrency or len(prompts))
    shares = [None if max_concurrency is None else (max_concurrency + i) // processes for i in range(processes)]
    clients = [
        _Client(target, prompts[i::processes], departures[i::processes], share) for i, share in enumerate(shares)
    ]
    try:
        await asyncio.gather(*(asyncio.to_thread(client.wait_until_ready) for client in clients))
        begin = time.perf_counter() + START_SECONDS
        loop = asyncio.get_running_loop()

        def tell(tokens: int, failed: bool) -> None:
            loop.call_soon_threadsafe(on_finished, tokens, failed)

        parts = await asyncio.gather(*(asyncio.to_thread(client.run, begin, tell) for client in clients))
    finally:
        for client in clients:
            client.close()
    return [parts[i % processes][i // processes] for i in range(len(prompts))]


class _Client:
    """One process, as the parent sees it. Its methods block."""

    def __init__(
        self, target: Target, prompts: Sequence[Prompt], departures: Sequence[float], max_concurrency: int | None
    ) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the event loop of the parent
        self._connection, theirs = context.Pipe()
        arguments = (theirs, target, prompts, departures, max_concurrency)
        self._process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        self._receive()

    def run(self, begin: float, on_finished: OnFinished) -> list[Record]:
        self._connection.send(begin)
        while True:
            message = self._receive()
            if isinstance(message, list):
                return message
            assert isinstance(message, tuple)
            on_finished(*message)

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _receive(self) -> object:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise ClientDied(f"a client process ended early, with exit code {self._process.exitcode}") from None


def _work(
    connection: Connection,
    target: Target,
    prompts: Sequence[Prompt],
    departures: Sequence[float],
    max_concurrency: int | None,
) -> None:
    """The client process: says that it is ready, begins at the time it gets, tells of each request that ends, and
    sends the records."""

    async def load(begin: float) -> list[Record]:
        async with new_session(target) as session:
            await asyncio.sleep(begin - time.perf_counter())
            return await run_load(session, target, prompts, departures, max_concurrency, tell)

    def tell(tokens: int, failed: bool) -> None:
        connection.send((tokens, failed))

    connection.send("ready")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        connection.send(runner.run(load(connection.recv())))
