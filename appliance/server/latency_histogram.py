"""A histogram for what happens with every token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class LatencyHistogram(Collector):
    """One series, observed in one thread. prometheus_client's own takes a lock for each of two values, and searches
    its buckets one by one."""

    def __init__(self, name: str, text: str, buckets: Sequence[float], labels: dict[str, str]) -> None:
        """`buckets` are upper bounds, ascending, without infinity."""
        self._name = name
        self._text = text
        self._bounds = buckets
        self._labels = labels
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        buckets, total = [], 0
        for bound, count in zip((*(str(float(bound)) for bound in self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, total))
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), buckets, self._sum)
        yield family
