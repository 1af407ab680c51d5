"""The watcher's state as Prometheus metrics: a textfile, and /metrics on a port of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.aws.events import Kind
from appliance.aws.store import Record


class WatcherMetrics:
    """Everything that happens often is counted by whoever does it; how things are is asked when somebody looks."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._announced = Counter(
            "pagebox:watcher_events", "Events announced, by kind", ("kind",), registry=self._registry
        )
        for (
            kind
        ) in Kind:  # there from the start, at 0: `rate()` misses the first count of a series that appears with it
            self._announced.labels(kind)
        self._actions = Counter(
            "pagebox:watcher_actions",
            "Actions, by outcome: done, failed",
            ("action", "outcome"),
            registry=self._registry,
        )
        self._failed_looks = Counter(
            "pagebox:watcher_poll_failures",
            "Looks at a source that brought no answer",
            ("monitor",),
            registry=self._registry,
        )
        self._last_look = Gauge(
            "pagebox:watcher_last_poll_timestamp_seconds",
            "When a source last answered",
            ("monitor",),
            registry=self._registry,
        )
        self._on_ec2 = Gauge(
            "pagebox:watcher_on_ec2", "1: EC2's notices are watched; 0: there are none here", registry=self._registry
        )

    def announced(self, kind: Kind) -> None:
        self._announced.labels(kind).inc()

    def acted(self, action: str) -> None:
        self._actions.labels(action, "done").inc()

    def act_failed(self, action: str) -> None:
        self._actions.labels(action, "failed").inc()

    def looked(self, monitor: str) -> None:
        self._failed_looks.labels(monitor)
        self._last_look.labels(monitor).set(time.time())

    def look_failed(self, monitor: str) -> None:
        self._failed_looks.labels(monitor).inc()

    def is_on_ec2(self) -> None:
        self._on_ec2.set(1)

    def show_records(self, records: Callable[[], Sequence[Record]]) -> None:
        """What holds now, from the store."""
        self._registry.register(_Records(records))

    def show_xids(self, counts: Mapping[int, int]) -> None:
        """Xid messages of this boot, by number. `counts` may go on counting."""
        self._registry.register(_Xids(counts))

    def show_uncorrected_errors(self, errors: Callable[[], Mapping[str, int]]) -> None:
        """By the GPU's UUID."""
        self._registry.register(_UncorrectedErrors(errors))

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)


class _Records(Collector):
    def __init__(self, records: Callable[[], Sequence[Record]]) -> None:
        self._records = records

    def collect(self) -> Iterator[Metric]:
        records = self._records()
        holding = GaugeMetricFamily("pagebox:watcher_events_holding", "Events that hold now, by kind", labels=["kind"])
        deadline = GaugeMetricFamily(
            "pagebox:watcher_deadline_timestamp_seconds", "When the machine goes, the earliest by kind", labels=["kind"]
        )
        for kind in Kind:
            events = [record.event for record in records if record.event.kind == kind]
            holding.add_metric([kind], len(events))
            deadlines = [event.deadline for event in events if event.deadline is not None]
            if deadlines:
                deadline.add_metric([kind], min(deadlines).timestamp())
        noticed = any(record.event.kind == Kind.SPOT_INTERRUPTION for record in records)
        yield GaugeMetricFamily("pagebox:spot_notice", "1: EC2 is taking this spot instance back", value=noticed)
        yield holding
        yield deadline


class _Xids(Collector):
    def __init__(self, counts: Mapping[int, int]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("pagebox:gpu_xid_errors", "The NVIDIA driver's Xid messages", labels=["xid"])
        for xid, count in sorted(self._counts.items()):
            family.add_metric([str(xid)], count)
        yield family


class _UncorrectedErrors(Collector):
    def __init__(self, errors: Callable[[], Mapping[str, int]]) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "pagebox:gpu_uncorrected_memory_errors", "Beyond ECC, since the driver was loaded", labels=["gpu"]
        )
        for gpu, count in sorted(self._errors().items()):
            family.add_metric([gpu], count)
        yield family
