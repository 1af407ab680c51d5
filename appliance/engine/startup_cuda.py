"""The model on a GPU. Imports torch only when called."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from appliance.config import Settings
from appliance.engine.memory.gpu_plan import MemoryPlan, estimate, plan_from_measured
from appliance.engine.memory.gpus import Gpu
from appliance.engine.memory.ledger import MemoryLedger, log_ledger
from appliance.engine.memory.swap_space import num_host_blocks, swap_space_bytes
from appliance.engine.memory.wording import size
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.startup_common import (
    Backend,
    ModelSource,
    ReportPhase,
    available_host_bytes,
    reading,
    scheduler_config,
)

if TYPE_CHECKING:
    import torch

    from appliance.models.causal_lm import CausalLM
    from appliance.runner.cuda.model_runner import CudaRunner

log = logging.getLogger(__name__)


def build_cuda_backend(settings: Settings, source: ModelSource, report: ReportPhase) -> Backend:
    """Load, measure, and give the KV cache what is left. Raises `StartupError`.

    The order is that of `engine.memory.gpu_plan`: what fits is first judged by arithmetic, before weights are read, and
    then by what the weights, the runner and the largest step really took.
    """
    import torch

    from appliance.loading.dtype import choose_dtype, kv_cache_dtype
    from appliance.loading.loader import load_model
    from appliance.models.layers.linear import make_batch_invariant
    from appliance.runner.cuda.warm_up import run_every_kind_of_step, run_largest_step
    from appliance.runner.host_tier import device_bytes, make_host_tier

    device = torch.device("cuda", torch.cuda.current_device())
    dtype = choose_dtype(settings.model.dtype, source.config, device)
    cache_dtype = kv_cache_dtype(settings.memory.kv_cache_dtype, dtype)
    estimated = estimate(source.facts, settings, _gpu(device), dtype.itemsize)
    # by arithmetic too, before anything is read
    swap_bytes = swap_space_bytes(settings, available_host_bytes())
    num_slots = num_host_blocks(swap_bytes, estimated.kv_cache.bytes_per_block)
    _scheduler_config(settings, source, estimated)

    model = load_model(
        source.location,
        source.config,
        load_format=settings.model.load_format,
        dtype=dtype,
        device=device,
        max_model_len=estimated.kv_cache.max_model_len,
        seed=settings.model.seed or 0,
        progress=reading(source, report),
    )
    if settings.performance.batch_invariant:
        make_batch_invariant(model)
    weights = torch.cuda.memory_allocated(device)

    report("warming_up", "Running the largest step")
    began = time.monotonic()
    one_block = _kv_caches(source, 1, estimated.kv_cache.block_size, cache_dtype, device)
    cache_bytes = sum(cache.nbytes for cache in one_block)
    runner = _runner(settings, source, model, one_block, estimated, dtype)
    state = torch.cuda.memory_allocated(device) - weights - cache_bytes
    if num_slots:
        state += device_bytes(estimated.kv_cache.bytes_per_block)
    runner.compile_kernels(model)
    log.info("Compiled kernels in %.1f s", time.monotonic() - began)
    activations = run_largest_step(runner)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    plan = plan_from_measured(
        estimated,
        settings,
        total=total,
        free=free,
        reserved=torch.cuda.memory_reserved(device),
        weights=weights,
        state=state,
        activations=activations,
    )
    log.info("Kernels are ready, and the largest step has run, after %.1f s", time.monotonic() - began)

    blocks = f"{plan.kv_cache.num_blocks} blocks of {plan.kv_cache.block_size} tokens"
    report("allocating_kv_cache", f"{blocks}, {size(plan.kv_cache.total_bytes)}")
    kv_caches = _kv_caches(source, plan.kv_cache.num_blocks, plan.kv_cache.block_size, cache_dtype, device)
    host_tier = make_host_tier(kv_caches, num_slots) if num_slots else None
    runner.move_in(kv_caches, host_tier)
    run_every_kind_of_step(runner)
    plan = plan.with_cuda_graphs(_capture(runner, report, device))
    log_ledger(log, MemoryLedger.of(plan))
    if num_slots:
        log.info("Swap space: %d blocks, %s of host memory", num_slots, size(num_slots * plan.kv_cache.bytes_per_block))
    return Backend(
        runner,
        plan.kv_cache,
        _scheduler_config(settings, source, plan),
        num_slots,
        str(dtype).removeprefix("torch."),
        str(device),
    )


def _gpu(device: torch.device) -> Gpu:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    return Gpu(
        properties.name,
        total,
        (properties.major, properties.minor),
        properties.multi_processor_count,
        driver_bytes=total - free,
    )


def _scheduler_config(settings: Settings, source: ModelSource, plan: MemoryPlan) -> SchedulerConfig:
    return scheduler_config(
        settings,
        max_model_len=plan.kv_cache.max_model_len,
        max_num_batched_tokens=plan.shape.max_num_batched_tokens,
        eos_token_ids=source.eos_token_ids,
    )


def _kv_caches(
    source: ModelSource, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    import torch

    facts = source.facts
    shape = (num_blocks, 2, facts.num_kv_heads, block_size, facts.head_dim)
    # as bytes: not every operation knows FP8
    num_bytes = 2 * num_blocks * facts.num_kv_heads * block_size * facts.head_dim * dtype.itemsize
    return [
        torch.zeros(num_bytes, dtype=torch.uint8, device=device).view(dtype).view(shape)
        for _ in range(facts.num_layers)
    ]


def _runner(
    settings: Settings,
    source: ModelSource,
    model: CausalLM,
    kv_caches: list[torch.Tensor],
    plan: MemoryPlan,
    dtype: torch.dtype,
) -> CudaRunner:
    from appliance.runner.cuda.decode_step import AttentionShape
    from appliance.runner.cuda.model_runner import CudaRunner
    from appliance.runner.cuda.options import RunnerOptions

    facts = source.facts
    options = RunnerOptions(
        max_num_seqs=plan.shape.max_num_seqs,
        max_model_len=plan.kv_cache.max_model_len,
        max_num_batched_tokens=plan.shape.max_num_batched_tokens,
        block_size=plan.shape.block_size,
        vocab_size=facts.vocab_size,
        shape=AttentionShape(facts.num_heads, facts.num_kv_heads, facts.head_dim, dtype),
        graph_sizes=plan.shape.graph_sizes,
        sharing_sizes=plan.shape.sharing_sizes,
        mixed_decodes=plan.shape.mixed_decodes,
        mixed_tokens=plan.shape.mixed_tokens,
        mixed_chunks=plan.shape.mixed_chunks,
        max_context_len_to_capture=settings.performance.max_context_len_to_capture,
        batch_invariant=settings.performance.batch_invariant,
        async_scheduling=settings.scheduling.async_scheduling,
    )
    return CudaRunner(model, kv_caches, options)


def _capture(runner: CudaRunner, report: ReportPhase, device: torch.device) -> int:
    """Record the CUDA graphs; returns the bytes that they took."""
    import torch

    began = time.monotonic()
    before: int = torch.cuda.mem_get_info(device)[0]
    runner.capture_graphs(lambda fraction: report("warming_up", "Recording CUDA graphs", fraction))
    torch.cuda.synchronize(device)
    after: int = torch.cuda.mem_get_info(device)[0]
    log.info("Recorded %d CUDA graphs in %.1f s", runner.num_graphs, time.monotonic() - began)
    return max(before - after, 0)
