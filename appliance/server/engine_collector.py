"""The engine's own numbers as Prometheus metrics, read when someone scrapes: no cost per step."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.engine.client import EngineClient

_LABELS = ("model_name", "engine")


class EngineCollector(Collector):
    """Counters start again at zero with the engine, as Prometheus expects of a restarted process."""

    def __init__(self, engine: EngineClient, model_name: str) -> None:
        self._engine = engine
        self._labels = (model_name, "0")
        self.prompt_throughput = 0.0  # tokens/s, set by whoever measures it
        self.generation_throughput = 0.0

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status
        stats = status.stats
        yield self._gauge("num_requests_running", "Sequences in the batch", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait for a place", stats.num_waiting)
        by_reason = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Waiting sequences by what they wait for",
            labels=(*_LABELS, "reason"),
        )
        by_reason.add_metric((*self._labels, "capacity"), stats.num_waiting)
        by_reason.add_metric((*self._labels, "deferred"), 0)
        yield by_reason
        yield self._gauge("num_requests_swapped", "Sequences swapped to host memory", stats.num_swapped)
        yield self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache held by sequences, 0 to 1", stats.kv_cache_usage
        )
        yield self._gauge("gpu_cache_usage_perc", "Older name of kv_cache_usage_perc", stats.kv_cache_usage)
        yield self._gauge(
            "cpu_cache_usage_perc", "Share of the swap space that holds a block, 0 to 1", stats.host_cache_usage
        )
        yield self._gauge("avg_prompt_throughput_toks_per_s", "Prompt tokens a second, lately", self.prompt_throughput)
        yield self._gauge(
            "avg_generation_throughput_toks_per_s", "Generated tokens a second, lately", self.generation_throughput
        )
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_cache_queries
        )
        yield self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_cache_hits)
        yield self._counter("num_preemptions", "Times that a sequence lost its place", stats.num_preemptions)
        yield self._counter("prompt_tokens", "Prompt tokens processed", stats.prompt_tokens)
        yield self._counter(
            "prompt_tokens_cached", "Prompt tokens taken from the prefix cache", stats.prefix_cache_hits
        )
        yield self._counter("generation_tokens", "Tokens generated", stats.generation_tokens)
        yield self._counter("corrupted_requests", "Sequences ended by NaN or infinite logits", stats.corrupted_requests)
        if status.ready is not None:
            config = {
                "block_size": str(status.ready.block_size),
                "num_gpu_blocks": str(status.ready.num_blocks),
                "engine": self._labels[1],
            }
            info = GaugeMetricFamily("vllm:cache_config_info", "The KV cache", labels=tuple(config))
            info.add_metric(tuple(config.values()), 1)
            yield info
        restored = CounterMetricFamily(
            "pagebox:kv_tokens_restored",
            "Tokens whose keys and values came back from the swap space",
            labels=("engine",),
        )
        restored.add_metric((self._labels[1],), stats.host_cache_hits)
        yield restored
        steps = CounterMetricFamily("pagebox:engine_steps", "Steps of the engine since its start", labels=("engine",))
        steps.add_metric((self._labels[1],), stats.steps)
        yield steps
        age = GaugeMetricFamily(
            "pagebox:engine_last_step_age_seconds",
            "Since the last step while there is work; 0 without",
            labels=("engine",),
        )
        age.add_metric((self._labels[1],), status.last_step_age or 0.0)
        yield age

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
        family.add_metric(self._labels, value)
        return family
