"""Throughput over the last seconds: for two gauges, and for a log line while there is something to say."""

from __future__ import annotations

import asyncio
import logging

from appliance.engine.client import EngineClient
from appliance.protocol.wire import SchedulerStats
from appliance.server.engine_collector import EngineCollector

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0


async def watch_throughput(engine: EngineClient, collector: EngineCollector, *, log_stats: bool) -> None:
    """Runs until cancelled."""
    before = engine.status.stats
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        now = engine.status.stats
        if now.steps < before.steps:
            before = SchedulerStats()  # a new engine counts from zero
        collector.prompt_throughput = (now.prompt_tokens - before.prompt_tokens) / INTERVAL_SECONDS
        collector.generation_throughput = (now.generation_tokens - before.generation_tokens) / INTERVAL_SECONDS
        if log_stats and (now.steps != before.steps or now.num_running or now.num_waiting):
            log.info(_line(now, before, collector))
        before = now


def _line(now: SchedulerStats, before: SchedulerStats, collector: EngineCollector) -> str:
    queries = now.prefix_cache_queries - before.prefix_cache_queries
    hits = now.prefix_cache_hits - before.prefix_cache_hits
    return (
        f"Engine 0: prompt {collector.prompt_throughput:.1f} tokens/s, "
        f"generation {collector.generation_throughput:.1f} tokens/s, running {now.num_running}, "
        f"waiting {now.num_waiting}, KV cache {now.kv_cache_usage:.1%}, "
        f"prefix cache hits {hits / queries if queries else 0.0:.1%}"
    )
