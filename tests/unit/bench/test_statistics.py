"""The numbers of a run, against values worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from appliance.bench import report
from appliance.bench.client import Record
from appliance.bench.statistics import Distribution, summarize


def record(sent: float, chunks: list[float], ended: float, tokens: int, asked: int = 0, cached: int = 0) -> Record:
    return Record(asked or tokens, sent, chunks, ended, 10, tokens, True, cached)


def failure(kind: str, detail: str = "", sent: float = 0.0, ended: float = 1.0) -> Record:
    return Record(8, sent, [], ended, error=kind, error_detail=detail)


def test_percentiles_interpolate_between_the_two_nearest_values() -> None:
    values = Distribution([10.0, 20.0, 30.0, 50.0])
    assert values.percentile(0) == 10.0
    assert values.percentile(50) == 25.0
    assert values.percentile(90) == pytest.approx(44.0)  # position 2.7: 30 + 0.7 * 20
    assert values.percentile(100) == 50.0
    assert values.mean == 27.5
    assert values.deviation == pytest.approx(math.sqrt(218.75))  # 17.5², 7.5², 2.5², 22.5²


def test_no_value_has_no_percentile_and_is_null_in_json() -> None:
    assert math.isnan(Distribution([]).percentile(50))
    numbers = report.as_json(summarize([failure("HTTP 500")]), [50, 99.9])
    assert numbers["mean_ttft_ms"] is None
    assert numbers["p99.9_e2el_ms"] is None
    json.dumps(numbers, allow_nan=False)


def test_latencies_of_requests_are_as_defined() -> None:
    summary = summarize([record(1.0, [1.5, 1.75, 2.5], 3.0, tokens=4), record(2.0, [2.25], 2.25, tokens=1)])
    assert summary.ttft.values == [0.25, 0.5]
    assert summary.itl.values == [0.25, 0.75]  # the gaps of the first; the second has one chunk
    assert summary.tpot.values == [0.5]  # (3.0 - 1.5) / 3; one token alone has none
    assert summary.e2el.values == [0.25, 2.0]


def test_throughputs_are_counts_over_the_time_from_the_first_request_to_the_last_end() -> None:
    summary = summarize([record(1.0, [2.0], 3.0, tokens=6, cached=8), record(2.0, [4.0], 5.0, tokens=10)])
    assert summary.duration == 4.0
    assert summary.request_throughput == 0.5
    assert summary.output_throughput == 4.0
    assert summary.total_token_throughput == 9.0  # 20 prompt tokens more
    assert summary.cached_tokens == 8


def test_failures_are_counted_by_kind_and_are_in_no_other_number() -> None:
    records = [record(0.0, [1.0], 2.0, tokens=4), failure("HTTP 429", "slow down"), failure("HTTP 500", "broken")]
    summary = summarize([*records, failure("HTTP 429", "slower")])
    assert [(f.kind, f.count, f.example) for f in summary.failures] == [
        ("HTTP 429", 2, "slow down"),
        ("HTTP 500", 1, "broken"),
    ]
    assert (summary.completed, summary.failed, summary.output_tokens) == (1, 3, 4)
    assert len(summary.e2el.values) == 1
    text = report.as_text(summary, [50])
    assert "2 × HTTP 429: slow down" in text
    assert "1 × HTTP 500: broken" in text


def test_a_run_that_ends_with_failures_lasts_until_the_last_of_them() -> None:
    assert summarize([record(1.0, [2.0], 3.0, tokens=2), failure("timeout", sent=1.0, ended=9.0)]).duration == 8.0


def test_requests_that_end_before_the_asked_length_are_counted_and_shown() -> None:
    summary = summarize([record(0.0, [1.0], 2.0, tokens=4, asked=8), record(0.0, [1.0], 2.0, tokens=8)])
    assert summary.short == 1
    assert "Ended before the asked length" in report.as_text(summary, [50])


def test_a_server_that_counts_no_tokens_is_told_apart() -> None:
    silent = Record(3, 0.0, [0.5, 1.0, 1.5], 1.5, output_tokens=3)
    summary = summarize([silent, record(0.0, [1.0], 2.0, tokens=3)])
    assert not summary.tokens_counted_by_server
    assert summary.total_token_throughput is None
    numbers = report.as_json(summary, [50])
    assert (numbers["output_tokens_counted_by"], numbers["total_input_tokens"]) == ("chunks", None)
