"""What several server processes count together."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from appliance.server.admission import AdmissionQueue, WaitingCounts
from appliance.server.control import AllMetrics, CollectMetrics, ToProcess
from appliance.server.errors import ApiError
from appliance.server.latency_histogram import LatencyHistogram
from appliance.server.metric_families import Family, added_up, exposition, families_of
from appliance.server.metrics_exchange import MetricsExchange


def test_the_limits_of_the_queue_hold_over_all_processes(tmp_path: Path) -> None:
    shared = tmp_path / "waiting"
    shared.write_bytes(bytes(WaitingCounts.bytes_for(2)))
    counts = []
    for number in range(2):
        with shared.open("r+b") as file:
            counts.append(WaitingCounts(mmap.mmap(file.fileno(), 0), number))
    first, second = (AdmissionQueue(3, 100, lambda reason: None, count) for count in counts)
    ticket = first.enter(2, 60)
    other = second.enter(1, 30)
    assert (first.sequences, first.tokens) == (second.sequences, second.tokens) == (3, 90)
    with pytest.raises(ApiError, match="3 sequences wait"):
        second.enter(1, 1)
    ticket.release()
    with pytest.raises(ApiError, match="30 prompt tokens wait"):
        first.enter(1, 71)
    first.enter(2, 70)
    counts[0].clear()  # its process was killed
    assert (second.sequences, second.tokens) == (1, 30)
    other.release()
    assert (second.sequences, second.tokens) == (0, 0)


def observed(requests: int, memory: int, started: float = 5.0) -> list[Family]:
    registry = CollectorRegistry()
    counter = Counter("requests", "Requests", ("outcome",), registry=registry)
    counter.labels("success").inc(requests)
    if requests > 2:
        counter.labels("timeout").inc()
    Histogram("seconds", "Seconds", buckets=(1, 2), registry=registry).observe(requests)
    Gauge("process_resident_memory_bytes", "Memory", registry=registry).set(memory)
    Gauge("process_start_time_seconds", "Start", registry=registry).set(started)
    return families_of(registry)


def lines(families: list[Family]) -> set[str]:
    return {line for line in exposition(families).decode().splitlines() if line[0] != "#" and "_created" not in line}


def test_counters_histograms_and_memory_of_processes_add_up() -> None:
    assert lines(added_up([observed(2, 100, 7.0), observed(3, 50, 6.0)])) == {
        'requests_total{outcome="success"} 5.0',
        'requests_total{outcome="timeout"} 1.0',
        'seconds_bucket{le="1.0"} 0.0',
        'seconds_bucket{le="2.0"} 1.0',
        'seconds_bucket{le="+Inf"} 2.0',
        "seconds_count 2.0",
        "seconds_sum 5.0",
        "process_resident_memory_bytes 150.0",
        "process_start_time_seconds 6.0",
    }


async def test_what_a_process_counted_outlives_it_and_what_it_held_does_not() -> None:
    sent: dict[int, list[ToProcess]] = {0: [], 1: []}
    exchange = MetricsExchange()
    for process, messages in sent.items():
        exchange.began(process, messages.append)
    exchange.scrape(asker=0, ticket=7)
    for process, requests in ((0, 1), (1, 2)):
        question = sent[process].pop()
        assert isinstance(question, CollectMetrics)
        assert sent[0] == []
        exchange.answered(process, question.ticket, observed(requests, 100))
    answer = sent[0].pop()
    assert isinstance(answer, AllMetrics) and answer.ticket == 7
    assert {'requests_total{outcome="success"} 3.0', "process_resident_memory_bytes 200.0"} <= lines(answer.families)

    exchange.scrape(asker=0, ticket=8)
    question = sent[0].pop()
    assert isinstance(question, CollectMetrics)
    exchange.answered(0, question.ticket, observed(5, 100))
    exchange.ended(1)  # it dies while it is asked
    answer = sent[0].pop()
    assert isinstance(answer, AllMetrics) and answer.ticket == 8
    assert {'requests_total{outcome="success"} 7.0', "process_resident_memory_bytes 100.0"} <= lines(answer.families)


def test_the_light_histogram_says_what_the_librarys_says() -> None:
    bounds = (0.01, 0.5, 1, 80)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    light = LatencyHistogram("a:seconds", "Time", bounds, {"engine": "0"})
    ours.register(light)
    reference = Histogram("a:seconds", "Time", ("engine",), buckets=bounds, registry=theirs).labels("0")
    for value in (0, 0.01, 0.010001, 0.7, 1, 79, 81, 1000):
        light.observe(value)
        reference.observe(value)
    expected = [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]
    assert generate_latest(ours).decode().splitlines() == expected
