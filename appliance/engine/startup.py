"""Build the engine that the settings ask for. Imports torch only when called."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from appliance.config import SchedulingSettings, Settings
from appliance.engine.core import EngineCore
from appliance.engine.eos import eos_token_ids
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.memory.kv_cache_plan import (
    DEFAULT_CPU_CACHE_BYTES,
    KVCachePlan,
    model_max_len,
    plan_kv_cache,
)
from appliance.engine.memory.swap_space import num_host_blocks, swap_space_bytes
from appliance.engine.memory.wording import size
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.models.facts import ModelFacts
from appliance.protocol.wire import EngineReady, Phase, TraceEvent

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CPU_BLOCK_SIZE = 32  # tokens; large enough that one block is a matrix product worth starting
CPU_BATCHED_TOKENS = 2048

OnTrace = Callable[[TraceEvent], None]


class ReportPhase(Protocol):
    """Says where the start is; `progress` is 0..1."""

    def __call__(self, phase: Phase, detail: str = "", progress: float | None = None) -> None: ...


def build_core(
    settings: Settings, report: ReportPhase, on_trace: OnTrace | None = None
) -> tuple[EngineCore, EngineReady]:
    """Load the model and put scheduler, cache and runner together; what fits is decided before any weight is read.

    `EngineReady.startup_seconds` is left 0 for the caller. Raises `StartupError`.
    """
    report("starting", "Importing torch")
    from appliance.loading.errors import ModelFolderMissing, ModelLoadError

    try:
        return _build(settings, report, on_trace)
    except ModelFolderMissing as error:
        raise SettingsRefused(str(error)) from error
    except ModelLoadError as error:
        raise StartupError(str(error)) from error


def _build(settings: Settings, report: ReportPhase, on_trace: OnTrace | None) -> tuple[EngineCore, EngineReady]:
    import torch

    from appliance.loading.dtype import choose_dtype, kv_cache_dtype
    from appliance.loading.loader import load_model
    from appliance.loading.model_config import load_config
    from appliance.loading.source import locate_model
    from appliance.models.facts import model_facts
    from appliance.runner.host_tier import make_host_tier
    from appliance.runner.model_runner import ModelRunner

    model = settings.model
    report("starting", f"Looking for {model.model}")
    location = locate_model(model)
    config = load_config(location, model.hf_overrides)
    facts = model_facts(config)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        log.warning("This machine has a GPU, but this release computes on the CPU only: it will be slow")
    dtype = choose_dtype(model.dtype, config, device)
    cache_dtype = kv_cache_dtype(settings.memory.kv_cache_dtype, dtype)
    weight_bytes = _weight_bytes(facts, config, dtype)
    swap_bytes = swap_space_bytes(settings, _available_bytes() - weight_bytes)
    plan = plan_kv_cache(
        settings.memory,
        block_size=settings.memory.block_size or CPU_BLOCK_SIZE,
        bytes_per_token=facts.kv_bytes_per_token(cache_dtype.itemsize),
        model_max_len=model_max_len(settings, facts),
        max_model_len=model.max_model_len,
        usable_bytes=_usable_bytes(settings, weight_bytes, swap_bytes),
    )
    num_slots = num_host_blocks(swap_bytes, plan.bytes_per_block)
    scheduler_config = _scheduler_config(settings.scheduling, plan, eos_token_ids(location, config))

    report("loading_weights", f"Reading {location}", 0.0)
    loaded = load_model(
        location,
        config,
        load_format=model.load_format,
        dtype=dtype,
        device=device,
        max_model_len=plan.max_model_len,
        seed=model.seed or 0,
        progress=_in_whole_percents(lambda fraction: report("loading_weights", f"Reading {location}", fraction)),
    )

    blocks = f"{plan.num_blocks} blocks of {plan.block_size} tokens, {plan.total_bytes / 2**30:.2f} GiB"
    report("allocating_kv_cache", blocks)
    log.info("KV cache: %s; a request may have %d tokens", blocks, plan.max_model_len)
    shape = (plan.num_blocks, 2, facts.num_kv_heads, plan.block_size, facts.head_dim)
    kv_caches = [_zeros(shape, cache_dtype) for _ in range(facts.num_layers)]
    if num_slots:
        log.info("Swap space: %d blocks, %s of host memory", num_slots, size(num_slots * plan.bytes_per_block))
    runner = ModelRunner(
        loaded,
        kv_caches,
        max_num_seqs=scheduler_config.max_num_seqs,
        max_model_len=plan.max_model_len,
        block_size=plan.block_size,
        host_tier=make_host_tier(kv_caches, num_slots) if num_slots else None,
    )
    kv_cache = KVCacheManager(plan.num_blocks, plan.block_size, settings.memory.enable_prefix_caching, num_slots)
    core = EngineCore(Scheduler(scheduler_config, kv_cache, on_event=on_trace), runner, on_trace)
    ready = EngineReady(
        model=model.model,
        max_model_len=plan.max_model_len,
        vocab_size=facts.vocab_size,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        max_num_seqs=scheduler_config.max_num_seqs,
        max_num_batched_tokens=scheduler_config.max_num_batched_tokens,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        startup_seconds=0.0,
    )
    return core, ready


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in host memory that the kernel provides page by page when they are first written.

    torch.zeros writes them all, which takes seconds and makes an engine that is hardly used as large as a busy one.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _in_whole_percents(progress: Callable[[float], None]) -> Callable[[float], None]:
    """`progress`, called only when another percent is done: a model has thousands of tensors."""
    reported = 0

    def report(fraction: float) -> None:
        nonlocal reported
        if int(fraction * 100) > reported:
            reported = int(fraction * 100)
            progress(fraction)

    return report


def _scheduler_config(scheduling: SchedulingSettings, plan: KVCachePlan, eos: frozenset[int]) -> SchedulerConfig:
    budget = scheduling.max_num_batched_tokens
    if budget is None:
        budget = max(CPU_BATCHED_TOKENS, scheduling.max_num_seqs)
        if not scheduling.enable_chunked_prefill:
            budget = max(budget, plan.max_model_len)
    try:
        return SchedulerConfig(
            max_num_seqs=scheduling.max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=plan.max_model_len,
            policy=scheduling.scheduling_policy,
            enable_chunked_prefill=scheduling.enable_chunked_prefill,
            long_prefill_token_threshold=scheduling.long_prefill_token_threshold,
            eos_token_ids=tuple(sorted(eos)),
            preemption_mode=scheduling.preemption_mode,
        )
    except ValueError as error:
        raise SettingsRefused(str(error)) from error


def _weight_bytes(facts: ModelFacts, config: Any, dtype: torch.dtype) -> int:
    """What the weights take once loaded: an output head that shares the embedding gets a copy in its own layout."""
    copied = facts.vocab_size * facts.hidden_size if config.tie_word_embeddings else 0
    total: int = facts.weight_bytes(dtype.itemsize) + copied * dtype.itemsize
    return total


def _usable_bytes(settings: Settings, weight_bytes: int, swap_bytes: int) -> int:
    """What the KV cache may take of the host's memory beside the weights and the swap space."""
    available = _available_bytes()
    if weight_bytes > available:
        raise StartupError(
            f"The weights take {weight_bytes / 2**30:.2f} GiB, but only {available / 2**30:.2f} GiB of memory are "
            f"free; free some, choose a smaller model, or a dtype of 16 bits if this is float32"
        )
    free = available - weight_bytes - swap_bytes
    return min(DEFAULT_CPU_CACHE_BYTES, int(free * settings.memory.gpu_memory_utilization))


def _available_bytes() -> int:
    """MemAvailable of proc(5): what can be had without swapping, page cache included."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise StartupError("/proc/meminfo has no MemAvailable; set kv-cache-memory")
