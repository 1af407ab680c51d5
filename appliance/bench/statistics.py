"""The numbers of a benchmark, and what each of them means.

Of one request, in seconds:

* **TTFT**, time to first token: request sent → first chunk that brings text. The role that opens a chat reply and a
  finish reason alone are no text.
* **ITL**, inter-token latency: the gaps between the chunks with text that follow one another. A chunk may bring several
  tokens (speculative decoding, or a character of several tokens), so gaps are of chunks, as the reader sees them.
* **E2EL**, end-to-end latency: request sent → last chunk with a choice.
* **TPOT**, time per output token: (E2EL − TTFT) / (output tokens − 1); only requests with two tokens or more have one.

"Sent" is the moment before the first byte of the request leaves, after any wait for a free place under
`--max-concurrency`. ITL is pooled over all requests; the other latencies have one value a request. Percentiles
interpolate linearly between the two nearest values, as NumPy's do by default.

Of the whole run: its duration is first request sent → end of the last one, and throughputs are counts over it. Failed
requests are counted as such, and are in no latency and no token count. Output tokens are what the server says in
`usage`; where it says nothing, chunks are counted, and the result says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from appliance.bench.client import Record


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values in seconds, sorted."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Of the population."""
        if not self.values:
            return math.nan
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / len(self.values))

    def percentile(self, percent: float) -> float:
        """NaN when there is no value."""
        if not self.values:
            return math.nan
        position = (len(self.values) - 1) * percent / 100
        below = math.floor(position)
        above = min(below + 1, len(self.values) - 1)
        return self.values[below] + (self.values[above] - self.values[below]) * (position - below)


@dataclass(frozen=True, slots=True)
class Failure:
    """Failures of one kind, and what the first of them said."""

    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of one run. Seconds and tokens."""

    completed: int
    failures: Sequence[Failure]  # the most frequent first
    duration: float
    prompt_tokens: int | None  # None when the server did not say for every request
    output_tokens: int
    cached_tokens: int
    short: int  # completed requests with fewer tokens than asked for
    tokens_counted_by_server: bool
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2el: Distribution

    @property
    def failed(self) -> int:
        return sum(failure.count for failure in self.failures)

    @property
    def request_throughput(self) -> float:
        return self._rate(self.completed)

    @property
    def output_throughput(self) -> float:
        return self._rate(self.output_tokens)

    @property
    def total_token_throughput(self) -> float | None:
        return None if self.prompt_tokens is None else self._rate(self.prompt_tokens + self.output_tokens)

    def _rate(self, count: int) -> float:
        return count / self.duration if self.duration > 0 else 0.0


def summarize(records: Sequence[Record]) -> Summary:
    """The numbers of a run that sent at least one request."""
    good = [record for record in records if record.error is None]
    begun = [record for record in good if record.chunk_times]
    gaps = (later - earlier for record in begun for earlier, later in pairwise(record.chunk_times))
    prompts = [record.prompt_tokens for record in good if record.prompt_tokens is not None]
    return Summary(
        completed=len(good),
        failures=_failures(records),
        duration=max(record.ended for record in records) - min(record.sent for record in records),
        prompt_tokens=sum(prompts) if len(prompts) == len(good) else None,
        output_tokens=sum(record.output_tokens for record in good),
        cached_tokens=sum(record.cached_tokens for record in good),
        short=sum(record.output_tokens < record.asked_tokens for record in good),
        tokens_counted_by_server=all(record.counted_by_server for record in good),
        ttft=_sorted(record.chunk_times[0] - record.sent for record in begun),
        tpot=_sorted(
            (record.ended - record.chunk_times[0]) / (record.output_tokens - 1)
            for record in begun
            if record.output_tokens > 1
        ),
        itl=_sorted(gaps),
        e2el=_sorted(record.ended - record.sent for record in good),
    )


def _sorted(values: Iterable[float]) -> Distribution:
    return Distribution(sorted(values))


def _failures(records: Sequence[Record]) -> list[Failure]:
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for record in records:
        if record.error is not None:
            counts[record.error] += 1
            examples.setdefault(record.error, record.error_detail)
    return [Failure(kind, count, examples[kind]) for kind, count in counts.most_common()]
