"""The steady state of an engine process: one thread that alternates between its sockets and steps of the core."""

from __future__ import annotations

import logging

import msgspec

from appliance.engine.core import EngineCore
from appliance.engine.hub import Change, Connection, Event, Hub
from appliance.engine.liveness import Liveness
from appliance.protocol.wire import (
    AbortRequests,
    AddRequest,
    Drain,
    EngineReady,
    Heartbeat,
    PhaseChange,
    Ping,
    ResetPrefixCache,
    SchedulerStats,
    StepOutputs,
    TokenDelta,
    TraceEvent,
)

log = logging.getLogger(__name__)


class EngineLoop:
    """Serves every connection of `hub` from one `core`.

    Each connection has its own name space of request ids. Inside the core a request keeps its id, unless another
    connection uses the same one at that moment.
    """

    def __init__(
        self, hub: Hub, core: EngineCore, ready: EngineReady, traces: list[TraceEvent], liveness: Liveness
    ) -> None:
        """`traces` is the list that the core's trace events are appended to; the loop empties it."""
        self._hub = hub
        self._core = core
        self._ready = ready
        self._traces = traces
        self._liveness = liveness
        self._stopping = False
        self._owners: dict[str, tuple[Connection, str]] = {}  # id in the core -> connection and its own id
        self._names: dict[Connection, dict[str, str]] = {}  # the other way round
        self._told_step = -1  # its `iteration_tokens` were sent

    def stop(self) -> None:
        """Make `run` return soon. Safe in a signal handler."""
        self._stopping = True
        self._hub.wake()

    def run(self) -> int:
        """Serve until `stop` (returns 0), or until the core cannot go on (returns 1)."""
        self._hub.broadcast(self._ready)
        while not self._stopping:
            for event in self._hub.poll(0 if self._core.has_work() else self._liveness.interval):
                self._handle(event)
            if self._core.has_work():
                self._deliver(self._core.step())
            self._liveness.turned(self._core)
            if self._core.fatal_error is not None:
                self._fail_all(self._core.fatal_error)
                self._hub.broadcast(PhaseChange("failed", self._core.fatal_error))
                return 1
        self._fail_all("The engine is shutting down; send the request again later")
        return 0

    def _handle(self, event: Event) -> None:
        connection, message = event
        match message:
            case AddRequest():
                self._add(connection, message)
            case AbortRequests(request_ids):
                self._abort(connection, request_ids)
            case Ping():
                self._hub.send(connection, Heartbeat(self._stats(), self._core.has_work()))
            case Drain(deadline):
                self._core.drain(deadline)
            case ResetPrefixCache():
                self._core.reset_prefix_cache()
            case Change.OPENED:
                self._hub.send(connection, self._ready)
            case Change.CLOSED:
                self._abort(connection, list(self._names.get(connection, ())))

    def _add(self, connection: Connection, request: AddRequest) -> None:
        if not connection.open:  # closed for what it sent after this
            return
        name = request.request_id
        names = self._names.setdefault(connection, {})
        if name in names:
            self._hub.drop(connection, f"it sent request id {name!r} a second time while the first still runs")
            return
        if name in self._owners:
            request = msgspec.structs.replace(request, request_id=f"{name}@{connection.number}")
        self._owners[request.request_id] = (connection, name)
        names[name] = request.request_id
        try:
            refusal = self._core.add(request)
        except Exception as error:
            log.exception("Request %s could not be added", request.request_id)
            refusal = TokenDelta(request.request_id, [], finish_reason="error", error=f"The engine failed: {error}")
        self._deliver([refusal] if refusal is not None else [])

    def _abort(self, connection: Connection, names: list[str]) -> None:
        """Forget requests; ids that are unknown have finished in the meantime."""
        own = self._names.get(connection, {})
        ids = [own.pop(name) for name in names if name in own]
        for request_id in ids:
            del self._owners[request_id]
        if not connection.open:
            self._names.pop(connection, None)
        if ids:
            self._core.abort(ids)

    def _deliver(self, deltas: list[TokenDelta]) -> None:
        """Send each connection its own deltas, as one frame, after the trace events that led to them."""
        if self._traces:
            self._deliver_traces()
        batches: dict[Connection, list[TokenDelta]] = {}
        for delta in deltas:
            owner = self._owners.get(delta.request_id)
            if owner is None:
                continue
            connection, name = owner
            if delta.finish_reason is not None:
                del self._owners[delta.request_id]
                del self._names[connection][name]
            if name != delta.request_id:
                delta = msgspec.structs.replace(delta, request_id=name)
            batches.setdefault(connection, []).append(delta)
        if batches:
            for connection, batch in batches.items():
                self._hub.send(connection, StepOutputs(batch, self._stats()))

    def _stats(self) -> SchedulerStats:
        """The tokens of a step are told once, to one connection: servers that count them add up to the whole."""
        stats = self._core.stats()
        if stats.steps == self._told_step:
            return msgspec.structs.replace(stats, iteration_tokens=0)
        self._told_step = stats.steps
        return stats

    def _deliver_traces(self) -> None:
        for event in self._traces:
            owner = self._owners.get(event.request_id)
            if owner is not None:
                connection, name = owner
                self._hub.send(connection, msgspec.structs.replace(event, request_id=name))
        self._traces.clear()

    def _fail_all(self, reason: str) -> None:
        ids = list(self._owners)
        self._core.abort(ids)
        self._deliver([TokenDelta(request_id, [], finish_reason="error", error=reason) for request_id in ids])
