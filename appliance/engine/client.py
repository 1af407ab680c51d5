"""The server's end of the engine socket, for asyncio. Connects, reconnects for ever, and knows how the engine is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from appliance.engine.delta_stream import DeltaStream
from appliance.engine.frames import FrameError, FrameSplitter
from appliance.engine.watchdog import Watchdog
from appliance.protocol.wire import (
    AbortRequests,
    AddRequest,
    Drain,
    EngineReady,
    FromEngine,
    Heartbeat,
    Phase,
    PhaseChange,
    Ping,
    ResetPrefixCache,
    SchedulerStats,
    StepOutputs,
    ToEngine,
    TraceEvent,
    decode_from_engine,
    encode,
)

log = logging.getLogger(__name__)

# A local socket that refuses costs next to nothing, so the engine is found again soon after it is back.
RECONNECT_SECONDS = (0.05, 1.0)


class EngineError(Exception):
    """Something between server and engine failed. `message` is a sentence for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class EngineUnavailable(EngineError):
    """The engine is not connected or not ready, or it died or hung while the request ran. Sending again may work."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What is known of the engine at this moment. Times are seconds of `time.monotonic()`, ages are seconds."""

    phase: Phase
    detail: str  # for people; with phase "failed" the reason and the fix
    progress: float | None  # 0..1 while weights load
    connected: bool
    since: float  # when this phase began
    ready: EngineReady | None  # only while the engine is connected and past its start
    stats: SchedulerStats  # the newest known, of the engine that is connected or was last
    last_step_age: float | None  # since a step was last seen to end, or work began if later; None without work
    heartbeat_age: float | None  # since the oldest ping that has no answer yet; None when all are answered


class EngineClient:
    """One connection to one engine, shared by all requests of a server.

    `on_stats` is called with each snapshot that arrives (after steps, and about once a second in between), `on_trace`
    with each event of requests that set `trace`. Neither may block.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        heartbeat_interval: float = 1.0,
        on_trace: Callable[[TraceEvent], None] | None = None,
        on_stats: Callable[[SchedulerStats], None] | None = None,
    ) -> None:
        self.on_trace = on_trace
        self.on_stats = on_stats
        self._socket_path = socket_path
        self._heartbeat_interval = heartbeat_interval
        self._streams: dict[str, DeltaStream] = {}
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready: EngineReady | None = None
        self._phase: Phase = "starting"
        self._detail = "Waiting for the engine process"
        self._progress: float | None = None
        self._since = time.monotonic()
        self._told_why = False  # the newest engine said that it failed
        self._stats = SchedulerStats()
        self._engine_busy = False
        self._watchdog = Watchdog(heartbeat_interval)
        self._drain_deadline: float | None = None

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and reconnect for ever, in the background. Returns at once; see `status`."""
        self._task = asyncio.create_task(self._stay_connected(), name="engine-client")

    async def close(self) -> None:
        """Disconnect. The engine aborts what still ran; those requests raise `EngineUnavailable`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._connection is not None:
            self._connection.close()

    # ---- state ---------------------------------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            phase=self._phase,
            detail=self._detail,
            progress=self._progress,
            connected=self._connection is not None,
            since=self._since,
            ready=self._ready,
            stats=self._stats,
            last_step_age=self._watchdog.step_age if self._has_work() else None,
            heartbeat_age=self._watchdog.silence,
        )

    def is_ready(self) -> bool:
        """A real token was decoded at the start, and the loop still turns: steps when there is work, answers else."""
        return self._ready is not None and not self._is_stuck()

    def report_exit(self, detail: str, final: bool) -> None:
        """Whoever watches the process tells why it ended; shown as the status until a new engine says otherwise.

        What the engine itself said before it ended is better and stays. `final`: nobody will start it again.
        """
        if not self._told_why:
            self._enter("failed" if final else "starting", detail)
        self._told_why = False

    # ---- requests ------------------------------------------------------------------------------------------------

    @contextmanager
    def generate(self, request: AddRequest) -> Iterator[DeltaStream]:
        """The deltas of one sequence, the last one with a finish reason. Leaving the block before it came aborts it.

        A consumer that is slower than the engine gets several steps' tokens in one delta. A request that the engine
        cannot take ends in a delta with finish reason "error". Raises `EngineUnavailable` if the engine is not ready or
        stuck; the stream does if it dies or hangs before the end.
        """
        if self._connection is None or self._ready is None:
            raise EngineUnavailable(f"The engine is not ready: {self._detail or self._phase}")
        if self._is_stuck():
            raise EngineUnavailable(self._stuck_reason())
        if request.request_id in self._streams:
            raise EngineError(f"Request id {request.request_id!r} is in use by a request that still runs")
        if not self._has_work():
            self._watchdog.work_began()
        stream = DeltaStream()
        self._streams[request.request_id] = stream
        self._connection.send(request)
        try:
            yield stream
        finally:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
                if not stream.is_complete and self._connection is not None:
                    self._connection.send(AbortRequests([request.request_id]))

    def drain(self, deadline: float | None) -> None:
        """Have the engine shed what cannot end before `deadline`, in `time.monotonic()` seconds; None: no longer.

        Holds for an engine that comes later as well. What is shed ends in a delta with finish reason "shed".
        """
        self._drain_deadline = deadline
        if self._connection is not None:
            self._connection.send(Drain(deadline))

    async def reset_prefix_cache(self) -> None:
        """Forget every cached prefix that no running request holds. Raises `EngineUnavailable`."""
        if self._connection is None:
            raise EngineUnavailable(f"The engine is not connected: {self._detail or self._phase}")
        self._connection.send(ResetPrefixCache())

    # ---- the connection ------------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        wait, longest = RECONNECT_SECONDS
        while True:
            try:
                _, connection = await loop.create_unix_connection(lambda: _Connection(self), str(self._socket_path))
            except OSError:
                await asyncio.sleep(wait)
                wait = min(wait * 1.5, longest)
                continue
            wait = RECONNECT_SECONDS[0]
            while not connection.lost.is_set():
                self._watchdog.tick()
                if self._streams and self._is_stuck():
                    self._give_up_requests()
                connection.send(Ping())
                self._watchdog.pinged()
                try:
                    # not wait_for: in Python 3.11 it forgets that it was cancelled when the wait ends just then
                    async with asyncio.timeout(self._heartbeat_interval):
                        await connection.lost.wait()
                except TimeoutError:
                    continue
            await asyncio.sleep(wait)

    def _connected(self, connection: _Connection) -> None:
        self._connection = connection
        self._watchdog.reset()
        if self._drain_deadline is not None:
            connection.send(Drain(self._drain_deadline))

    def _disconnected(self, connection: _Connection) -> None:
        if connection is not self._connection:
            return
        self._connection = None
        self._engine_busy = False
        self._watchdog.reset()
        if self._phase != "failed":
            self._enter("starting", "The engine stopped; waiting for it to come back")
        self._fail_requests("The engine stopped while this request ran; send it again")

    def _give_up_requests(self) -> None:
        """Nobody waits for an engine that is stuck; should it go on after all, it need not compute these."""
        reason, ids = self._stuck_reason(), list(self._streams)
        log.error("%s Requests given up: %d", reason, len(ids))
        self._fail_requests(reason)
        if self._connection is not None:
            self._connection.send(AbortRequests(ids))

    def _fail_requests(self, reason: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(EngineUnavailable(reason))

    def _received(self, messages: Iterable[FromEngine]) -> None:
        """Take in what arrived together. Each stream gets all that is in it for it at once: several steps' tokens when
        the server does not keep up, which makes it faster."""
        due: list[DeltaStream] = []
        try:
            for message in messages:
                if isinstance(message, StepOutputs):
                    self._heard(message.stats, self._engine_busy)
                    for delta in message.outputs:
                        stream = self._streams.get(delta.request_id)
                        if stream is not None and stream.put(delta):
                            due.append(stream)
                else:
                    self._handle(message)
        finally:
            for stream in due:
                stream.deliver()

    def _handle(self, message: Heartbeat | PhaseChange | EngineReady | TraceEvent) -> None:
        match message:
            case Heartbeat():
                self._heard(message.stats, message.busy)
            case PhaseChange():
                self._enter(message.phase, message.detail, message.progress)
                self._told_why = message.phase == "failed"
            case EngineReady():
                self._enter("ready", "")
                self._ready = message
                self._watchdog.reset()
            case TraceEvent():
                if self.on_trace is not None:
                    self.on_trace(message)

    def _heard(self, stats: SchedulerStats, busy: bool) -> None:
        self._watchdog.heard(stepped=stats.steps != self._stats.steps, had_work=self._has_work())
        self._engine_busy = busy
        self._stats = stats
        if self.on_stats is not None:
            self.on_stats(stats)

    def _has_work(self) -> bool:
        return self._engine_busy or bool(self._streams)

    def _is_stuck(self) -> bool:
        return self._watchdog.stalled(has_work=self._has_work(), prefilling=self._prefilling)

    def _prefilling(self) -> bool:
        return any(not stream.has_begun for stream in self._streams.values())

    def _stuck_reason(self) -> str:
        age = self._watchdog.step_age if self._has_work() else self._watchdog.silence or 0.0
        return f"The engine stopped answering {age:.0f} s ago; send the request again later."

    def _enter(self, phase: Phase, detail: str, progress: float | None = None) -> None:
        if phase != self._phase:
            self._since = time.monotonic()
        self._phase = phase
        self._detail = detail
        self._progress = progress
        self._ready = None


class _Connection(asyncio.Protocol):
    def __init__(self, client: EngineClient) -> None:
        self.lost = asyncio.Event()
        self._client = client
        self._splitter = FrameSplitter()
        self._transport: asyncio.Transport | None = None

    def send(self, message: ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._client._connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._client._received(decode_from_engine(body) for body in self._splitter.feed(data))
        except (FrameError, msgspec.MsgspecError) as error:
            log.error("The engine sent something that is not in the protocol (%s); reconnecting", error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.is_set():
            self._transport = None
            self.lost.set()
            self._client._disconnected(self)
