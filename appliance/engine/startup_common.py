"""What starting on a CPU and on a GPU have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from appliance.config import Settings
from appliance.engine.core import Executor
from appliance.engine.memory.kv_cache_plan import KVCachePlan
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.models.facts import ModelFacts
from appliance.protocol.wire import Phase, TraceEvent

OnTrace = Callable[[TraceEvent], None]


class ReportPhase(Protocol):
    """Says where the start is; `progress` is 0..1."""

    def __call__(self, phase: Phase, detail: str = "", progress: float | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found, but not read."""

    location: Path
    config: Any  # a transformers configuration
    facts: ModelFacts
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Backend:
    """A model on a device, ready to run steps."""

    executor: Executor
    plan: KVCachePlan
    scheduler_config: SchedulerConfig
    num_host_blocks: int  # of the cache's second tier
    dtype: str
    device: str


def scheduler_config(
    settings: Settings, *, max_model_len: int, max_num_batched_tokens: int, eos_token_ids: frozenset[int]
) -> SchedulerConfig:
    """Raises `SettingsRefused`."""
    scheduling = settings.scheduling
    try:
        return SchedulerConfig(
            max_num_seqs=scheduling.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            policy=scheduling.scheduling_policy,
            enable_chunked_prefill=scheduling.enable_chunked_prefill,
            long_prefill_token_threshold=scheduling.long_prefill_token_threshold,
            eos_token_ids=tuple(sorted(eos_token_ids)),
            preemption_mode=scheduling.preemption_mode,
        )
    except ValueError as error:
        raise SettingsRefused(str(error)) from error


def reading(source: ModelSource, report: ReportPhase) -> Callable[[float], None]:
    """Reports the fraction of the weights that was read, when another percent is: a model has thousands of tensors."""
    detail = f"Reading {source.location}"
    report("loading_weights", detail, 0.0)
    reported = 0

    def progress(fraction: float) -> None:
        nonlocal reported
        if int(fraction * 100) > reported:
            reported = int(fraction * 100)
            report("loading_weights", detail, fraction)

    return progress


def available_host_bytes() -> int:
    """MemAvailable of proc(5): what can be had without swapping, page cache included."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise StartupError("/proc/meminfo has no MemAvailable; set kv-cache-memory")
