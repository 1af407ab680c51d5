"""Prometheus metrics under vLLM's names, and a few of our own that begin `pagebox:`.

Counters that the engine keeps itself are read at scrape time (`engine_collector`); here is what the server observes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from appliance.engine.client import EngineClient
from appliance.protocol.wire import FinishReason, SchedulerStats
from appliance.server.admission import Reason
from appliance.server.engine_collector import EngineCollector
from appliance.server.latency_histogram import LatencyHistogram
from appliance.server.limits import TimeLimits
from appliance.server.request_record import Outcome
from appliance.version import __version__

_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_TOKEN_TIME = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST_TIME = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))
_ITERATION = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_N = (1, 2, 5, 10, 20)


@dataclass(slots=True)
class SequenceTimings:
    """Of one finished sequence; seconds. What never happened is None."""

    finish_reason: str
    prompt_tokens: int
    generation_tokens: int
    end_to_end: float
    time_to_first_token: float | None
    queue: float | None
    prefill: float | None


class Metrics:
    """All metrics of one server process, those of the drain read from `limits`.

    `observed` is what this process counted: several add up. `state` is how things are, in every process alike.
    """

    def __init__(self, model_name: str, engine: EngineClient, limits: TimeLimits) -> None:
        self.observed = CollectorRegistry()
        self.state = CollectorRegistry()
        self._labels = (model_name, "0")
        self._steps_seen = 0
        self._rejections = self._counter(
            "vllm:admission_rejections", "Requests refused because the queue was full", "reason", get_args(Reason)
        )
        self._success = self._counter(
            "vllm:request_success",
            "Sequences that ended, by finish reason",
            "finished_reason",
            get_args(FinishReason),
        )
        self._ttft = self._histogram("vllm:time_to_first_token_seconds", "Time to the first token", _TTFT)
        self._itl = LatencyHistogram(
            "vllm:inter_token_latency_seconds",
            "Time between two deliveries of tokens",
            _TOKEN_TIME,
            {"model_name": model_name, "engine": "0"},
        )
        self.observed.register(self._itl)
        self._tpot = self._histogram(
            "vllm:time_per_output_token_seconds", "Mean time per token after the first, by sequence", _TOKEN_TIME
        )
        self._e2e = self._histogram("vllm:e2e_request_latency_seconds", "Arrival to last token", _REQUEST_TIME)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "Arrival to first scheduling", _REQUEST_TIME)
        self._prefill = self._histogram(
            "vllm:request_prefill_time_seconds", "First scheduling to first token", _REQUEST_TIME
        )
        self._decode = self._histogram("vllm:request_decode_time_seconds", "First token to last token", _REQUEST_TIME)
        self._inference = self._histogram(
            "vllm:request_inference_time_seconds", "First scheduling to last token", _REQUEST_TIME
        )
        self._prompt = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a sequence", _TOKENS)
        self._generation = self._histogram("vllm:request_generation_tokens", "Generated tokens of a sequence", _TOKENS)
        self._n = self._histogram("vllm:request_params_n", "The parameter n", _N)
        self._max_tokens = self._histogram("vllm:request_params_max_tokens", "The parameter max_tokens", _TOKENS)
        self._iteration = self._histogram("vllm:iteration_tokens_total", "Tokens of an engine step", _ITERATION)
        self._requests = Counter(
            "pagebox:requests", "HTTP requests by outcome and API key", ("outcome", "key"), registry=self.observed
        )
        self._key_tokens = Counter(
            "pagebox:key_tokens",
            "Tokens that were used, by API key; kind is prompt or completion",
            ("key", "kind"),
            registry=self.observed,
        )
        self._key_refusals = Counter(
            "pagebox:key_refusals",
            "Requests refused by a limit of their API key: requests, tokens or concurrency",
            ("key", "limit"),
            registry=self.observed,
        )
        draining = Gauge("pagebox:drain_state", "0: serving; 1: draining, no new requests", registry=self.state)
        draining.set_function(lambda: limits.drain_seconds_left is not None)
        deadline = Gauge(
            "pagebox:drain_deadline_seconds",
            "Until a drain ends what still runs; 0 while serving",
            registry=self.state,
        )
        deadline.set_function(lambda: limits.drain_seconds_left or 0.0)
        build = Gauge("pagebox:build_info", "The running version", ("version",), registry=self.state)
        build.labels(__version__).set(1)
        self.collector = EngineCollector(engine, model_name)
        self.state.register(self.collector)
        ProcessCollector(registry=self.observed)  # memory, processor time and open files of the server process

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.observed) + self.state_exposition()

    def state_exposition(self) -> bytes:
        """The part of it that is how things are."""
        return generate_latest(self.state)

    def rejected(self, reason: Reason) -> None:
        self._rejections.labels(*self._labels, reason).inc()

    def request_ended(self, outcome: Outcome, key: str) -> None:
        self._requests.labels(outcome, key).inc()

    def tokens_used(self, key: str, prompt: int, completion: int) -> None:
        self._key_tokens.labels(key, "prompt").inc(prompt)
        self._key_tokens.labels(key, "completion").inc(completion)

    def key_refused(self, key: str, limit: str) -> None:
        self._key_refusals.labels(key, limit).inc()

    def request_started(self, n: int, max_tokens: int) -> None:
        self._n.observe(n)
        self._max_tokens.observe(max_tokens)

    def tokens_delivered(self, seconds_since_last: float) -> None:
        self._itl.observe(seconds_since_last)

    def engine_stats(self, stats: SchedulerStats) -> None:
        """Called with each snapshot; only a new step, whose tokens no other server was told, is an observation."""
        if stats.steps != self._steps_seen and stats.iteration_tokens:
            self._steps_seen = stats.steps
            self._iteration.observe(stats.iteration_tokens)

    def sequence_finished(self, timings: SequenceTimings) -> None:
        self._success.labels(*self._labels, timings.finish_reason).inc()
        self._prompt.observe(timings.prompt_tokens)
        self._generation.observe(timings.generation_tokens)
        self._e2e.observe(timings.end_to_end)
        if timings.time_to_first_token is None:
            return
        decode = timings.end_to_end - timings.time_to_first_token
        self._ttft.observe(timings.time_to_first_token)
        self._decode.observe(decode)
        if timings.generation_tokens > 1:
            self._tpot.observe(decode / (timings.generation_tokens - 1))
        if timings.queue is not None:
            self._queue.observe(timings.queue)
        if timings.prefill is not None:
            self._prefill.observe(timings.prefill)
            self._inference.observe(timings.prefill + decode)

    def _counter(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        """Every series is there from the start, at 0: `rate()` misses the first count of one that appears with it."""
        counter = Counter(name, text, ("model_name", "engine", label), registry=self.observed)
        for value in values:
            counter.labels(*self._labels, value)
        return counter

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, text, ("model_name", "engine"), buckets=buckets, registry=self.observed)
        return histogram.labels(*self._labels)
