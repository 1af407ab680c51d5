"""The numbers of a run as JSON, under the names that `vllm bench serve` gives them, and as lines for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from appliance.bench.statistics import Distribution, Summary

_LATENCIES = (
    ("ttft", "Time to first token"),
    ("tpot", "Time per output token"),
    ("itl", "Inter-token latency"),
    ("e2el", "End-to-end latency"),
)
_WIDTH = 34


def as_json(summary: Summary, percentiles: Sequence[float]) -> dict[str, Any]:
    """Latencies are milliseconds; what can't be known is null."""
    report: dict[str, Any] = {
        "duration": summary.duration,
        "completed": summary.completed,
        "failed": summary.failed,
        "errors": [{"kind": f.kind, "count": f.count, "example": f.example} for f in summary.failures],
        "total_input_tokens": summary.prompt_tokens,
        "total_output_tokens": summary.output_tokens,
        "total_cached_tokens": summary.cached_tokens,
        "short_requests": summary.short,
        "output_tokens_counted_by": "server" if summary.tokens_counted_by_server else "chunks",
        "request_throughput": summary.request_throughput,
        "output_throughput": summary.output_throughput,
        "total_token_throughput": summary.total_token_throughput,
    }
    for name, _ in _LATENCIES:
        values: Distribution = getattr(summary, name)
        report[f"mean_{name}_ms"] = _milliseconds(values.mean)
        report[f"median_{name}_ms"] = _milliseconds(values.percentile(50))
        report[f"std_{name}_ms"] = _milliseconds(values.deviation)
        for percent in percentiles:
            report[f"p{percent:g}_{name}_ms"] = _milliseconds(values.percentile(percent))
    return report


def as_text(summary: Summary, percentiles: Sequence[float]) -> str:
    lines = [
        _line("Completed requests", f"{summary.completed:,}"),
        _line("Failed requests", f"{summary.failed:,}"),
        *(f"    {failure.count} × {failure.kind}{_example(failure.example)}" for failure in summary.failures),
        _line("Duration", f"{summary.duration:.2f} s"),
        _line("Prompt tokens", "the server does not say" if summary.prompt_tokens is None else _prompts(summary)),
        _line("Output tokens", f"{summary.output_tokens:,}{'' if summary.tokens_counted_by_server else _BY_CHUNKS}"),
    ]
    if summary.short:
        lines.append(_line("Ended before the asked length", f"{summary.short:,} requests (--ignore-eos avoids it)"))
    lines += [
        "",
        _line("Requests", f"{summary.request_throughput:.2f} per second"),
        _line("Output tokens", f"{summary.output_throughput:.1f} per second"),
    ]
    if summary.total_token_throughput is not None:
        lines.append(_line("Prompt and output tokens", f"{summary.total_token_throughput:.1f} per second"))
    heads = ["mean", *(f"p{percent:g}" for percent in percentiles)]
    lines += ["", f"{'Milliseconds':<{_WIDTH}}" + "".join(f"{head:>11}" for head in heads)]
    for name, title in _LATENCIES:
        values: Distribution = getattr(summary, name)
        cells = [values.mean, *(values.percentile(percent) for percent in percentiles)]
        row = f"{f'{title} ({name.upper()})':<{_WIDTH}}" + "".join(f"{_cell(cell):>11}" for cell in cells)
        lines.append(row)
    return "\n".join(lines)


_BY_CHUNKS = " (chunks: the server does not count tokens)"


def _line(title: str, value: str) -> str:
    return f"{title:<{_WIDTH}}{value}"


def _prompts(summary: Summary) -> str:
    return f"{summary.prompt_tokens:,}, of which {summary.cached_tokens:,} were cached"


def _example(text: str) -> str:
    short = " ".join(text.split())
    return f": {short[:200]}" if short else ""


def _milliseconds(seconds: float) -> float | None:
    return None if math.isnan(seconds) else seconds * 1000


def _cell(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{seconds * 1000:.2f}"
