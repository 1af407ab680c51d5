"""The model in host memory, run by PyTorch. Imports torch only when called."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from appliance.config import Settings
from appliance.engine.memory.kv_cache_plan import DEFAULT_CPU_CACHE_BYTES, model_max_len, plan_kv_cache
from appliance.engine.memory.swap_space import num_host_blocks, swap_space_bytes
from appliance.engine.memory.wording import size
from appliance.engine.startup_common import (
    Backend,
    ModelSource,
    ReportPhase,
    available_host_bytes,
    reading,
    scheduler_config,
)
from appliance.engine.startup_errors import SettingsRefused, StartupError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

CPU_BLOCK_SIZE = 32  # tokens; large enough that one block is a matrix product worth starting
CPU_BATCHED_TOKENS = 2048


def build_cpu_backend(settings: Settings, source: ModelSource, report: ReportPhase) -> Backend:
    """Raises `StartupError`."""
    import torch

    from appliance.loading.dtype import choose_dtype, kv_cache_dtype
    from appliance.loading.loader import load_model
    from appliance.runner.host_tier import make_host_tier
    from appliance.runner.model_runner import ModelRunner

    if settings.performance.batch_invariant:
        raise SettingsRefused(
            "batch-invariant needs a GPU: on the CPU the order of additions in a matrix product depends on the batch, "
            "and nothing here changes that. Unset batch-invariant"
        )
    model, facts, device = settings.model, source.facts, torch.device("cpu")
    dtype = choose_dtype(model.dtype, source.config, device)
    cache_dtype = kv_cache_dtype(settings.memory.kv_cache_dtype, dtype)
    weight_bytes = _weight_bytes(source, dtype)
    swap_bytes = swap_space_bytes(settings, available_host_bytes() - weight_bytes)
    plan = plan_kv_cache(
        settings.memory,
        block_size=settings.memory.block_size or CPU_BLOCK_SIZE,
        bytes_per_token=facts.kv_bytes_per_token(cache_dtype.itemsize),
        model_max_len=model_max_len(settings, facts),
        max_model_len=model.max_model_len,
        usable_bytes=_usable_bytes(settings, weight_bytes, swap_bytes),
    )
    num_slots = num_host_blocks(swap_bytes, plan.bytes_per_block)
    steered_by = scheduler_config(
        settings,
        max_model_len=plan.max_model_len,
        max_num_batched_tokens=_budget(settings, plan.max_model_len),
        eos_token_ids=source.eos_token_ids,
    )
    loaded = load_model(
        source.location,
        source.config,
        load_format=model.load_format,
        dtype=dtype,
        device=device,
        max_model_len=plan.max_model_len,
        seed=model.seed or 0,
        progress=reading(source, report),
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
        max_num_seqs=steered_by.max_num_seqs,
        max_model_len=plan.max_model_len,
        block_size=plan.block_size,
        host_tier=make_host_tier(kv_caches, num_slots) if num_slots else None,
    )
    return Backend(runner, plan, steered_by, num_slots, str(dtype).removeprefix("torch."), "cpu")


def _budget(settings: Settings, max_model_len: int) -> int:
    scheduling = settings.scheduling
    if scheduling.max_num_batched_tokens is not None:
        return scheduling.max_num_batched_tokens
    budget = max(CPU_BATCHED_TOKENS, scheduling.max_num_seqs)
    return budget if scheduling.enable_chunked_prefill else max(budget, max_model_len)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros in host memory that the kernel provides page by page when they are first written.

    torch.zeros writes them all, which takes seconds and makes an engine that is hardly used as large as a busy one.
    """
    import numpy as np
    import torch

    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _weight_bytes(source: ModelSource, dtype: torch.dtype) -> int:
    """What the weights take once loaded: an output head that shares the embedding gets a copy in its own layout."""
    facts = source.facts
    copied = facts.vocab_size * facts.hidden_size if source.config.tie_word_embeddings else 0
    total: int = facts.weight_bytes(dtype.itemsize) + copied * dtype.itemsize
    return total


def _usable_bytes(settings: Settings, weight_bytes: int, swap_bytes: int) -> int:
    """What the KV cache may take of the host's memory beside the weights and the swap space."""
    available = available_host_bytes()
    if weight_bytes > available:
        raise StartupError(
            f"The weights take {weight_bytes / 2**30:.2f} GiB, but only {available / 2**30:.2f} GiB of memory are "
            f"free; free some, choose a smaller model, or a dtype of 16 bits if this is float32"
        )
    free = available - weight_bytes - swap_bytes
    return min(DEFAULT_CPU_CACHE_BYTES, int(free * settings.memory.gpu_memory_utilization))
