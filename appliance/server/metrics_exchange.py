"""Collects what several server processes counted, for the one that was asked for its metrics."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from appliance.server.control import AllMetrics, CollectMetrics, ToProcess
from appliance.server.metric_families import Family, added_up, lasting

SECONDS = 2.0  # a process that has not answered by then counts with what it said last

Send = Callable[[ToProcess], None]


@dataclass(slots=True)
class _Scrape:
    asker: int
    ticket: int  # the asker's
    missing: set[int]
    timer: asyncio.TimerHandle


class MetricsExchange:
    """The parent's side. Processes have numbers.

    What a process said last counts on after its end, so that no sum ever falls, which Prometheus would take for a new
    start. What a process that is killed counted since then is lost.
    """

    def __init__(self) -> None:
        self._senders: dict[int, Send] = {}
        self._newest: dict[int, list[Family]] = {}
        self._ended: list[Family] = []
        self._scrapes: dict[int, _Scrape] = {}
        self._tickets = itertools.count()

    def began(self, process: int, send: Send) -> None:
        self._senders[process] = send

    def ended(self, process: int) -> None:
        self._senders.pop(process, None)
        self._ended = added_up([self._ended, lasting(self._newest.pop(process, []))])
        for ticket, scrape in list(self._scrapes.items()):
            self._no_longer_missing(ticket, scrape, process)

    def scrape(self, asker: int, ticket: int) -> None:
        """Have every process asked, and the sum sent to `asker`."""
        own = next(self._tickets)
        timer = asyncio.get_running_loop().call_later(SECONDS, self._finish, own)
        self._scrapes[own] = _Scrape(asker, ticket, set(self._senders), timer)
        for send in self._senders.values():
            send(CollectMetrics(own))

    def answered(self, process: int, ticket: int, families: list[Family]) -> None:
        self._newest[process] = families
        scrape = self._scrapes.get(ticket)
        if scrape is not None:
            self._no_longer_missing(ticket, scrape, process)

    def _no_longer_missing(self, ticket: int, scrape: _Scrape, process: int) -> None:
        scrape.missing.discard(process)
        if not scrape.missing:
            self._finish(ticket)

    def _finish(self, ticket: int) -> None:
        scrape = self._scrapes.pop(ticket)
        scrape.timer.cancel()
        send = self._senders.get(scrape.asker)
        if send is not None:
            send(AllMetrics(scrape.ticket, added_up([*self._newest.values(), self._ended])))
