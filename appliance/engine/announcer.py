"""Answers the engine's socket while the main thread is busy loading."""

from __future__ import annotations

import threading
from collections import deque

from appliance.engine.hub import Change, Connection, Event, Hub
from appliance.protocol.wire import AddRequest, Phase, PhaseChange, Ping, SchedulerStats, StepOutputs, TokenDelta


class StartupAnnouncer:
    """Owns the hub, in a thread of its own, from `start` to `stop`; tells every connection what phase the start is in.

    A connection learns the phase when it opens, when the phase changes and as the answer to a ping. Requests are
    refused. The hub's thread is the only one that touches it; `report` hands phases over.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._newest = PhaseChange("starting")
        self._reports: deque[PhaseChange] = deque([self._newest])
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="startup-announcer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def report(self, phase: Phase, detail: str = "", progress: float | None = None) -> None:
        """Announce where the start is. `progress` is 0..1. May be called often, from the loading thread."""
        self._reports.append(PhaseChange(phase, detail, progress))
        self._hub.wake()

    def stop(self) -> None:
        """Announce what was reported, end the thread and give the hub back to the caller."""
        self._stopping = True
        self._hub.wake()
        self._thread.join()
        self._announce()

    def _run(self) -> None:
        while not self._stopping:
            for event in self._hub.poll(None):
                self._answer(event)
            self._announce()

    def _announce(self) -> None:
        while self._reports:
            self._newest = self._reports.popleft()
            self._hub.broadcast(self._newest)

    def _answer(self, event: Event) -> None:
        connection, message = event
        match message:
            case Change.OPENED | Ping():
                self._hub.send(connection, self._newest)
            case AddRequest():
                self._refuse(connection, message)

    def _refuse(self, connection: Connection, request: AddRequest) -> None:
        reason = f"The engine is not ready: {self._newest.detail or self._newest.phase}"
        refusal = TokenDelta(request.request_id, [], finish_reason="error", error=reason)
        self._hub.send(connection, StepOutputs([refusal], SchedulerStats()))
