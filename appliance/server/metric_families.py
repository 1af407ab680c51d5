"""Metrics as plain data, to add up what several processes counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

# Times and limits of a process: the sum of two says nothing, so the lowest stands for all.
_LOWEST = ("_created", "process_start_time_seconds", "process_max_fds")


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: dict[str, str]
    value: float

    @property
    def key(self) -> tuple[object, ...]:
        return (self.name, *sorted(self.labels.items()))


class Family(msgspec.Struct, frozen=True, array_like=True):
    name: str
    text: str
    kind: str
    samples: list[Sample]


def families_of(registry: CollectorRegistry) -> list[Family]:
    return [
        Family(
            family.name,
            family.documentation,
            family.type,
            [Sample(sample.name, sample.labels, sample.value) for sample in family.samples],
        )
        for family in registry.collect()
    ]


def added_up(processes: Iterable[Sequence[Family]]) -> list[Family]:
    """One family of each name, with the sum over all processes of each series."""
    heads: dict[str, Family] = {}
    series: dict[str, dict[tuple[object, ...], Sample]] = {}
    for families in processes:
        for family in families:
            heads.setdefault(family.name, family)
            known = series.setdefault(family.name, {})
            for sample in family.samples:
                other = known.get(sample.key)
                known[sample.key] = sample if other is None else _added(sample, other)
    return [msgspec.structs.replace(head, samples=list(series[name].values())) for name, head in heads.items()]


def lasting(families: Iterable[Family]) -> list[Family]:
    """What still counts of a process that has ended: not what it held at that moment."""
    return [family for family in families if family.kind != "gauge"]


def exposition(families: Sequence[Family]) -> bytes:
    """The text format of Prometheus."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        for family in self._families:
            metric = Metric(family.name, family.text, family.kind)
            for sample in family.samples:
                metric.add_sample(sample.name, sample.labels, sample.value)
            yield metric


def _added(first: Sample, second: Sample) -> Sample:
    values = (first.value, second.value)
    return Sample(first.name, first.labels, min(values) if first.name.endswith(_LOWEST) else sum(values))
