"""Build the engine that the settings ask for. Imports torch only when called."""

from __future__ import annotations

from appliance.config import Settings
from appliance.engine.core import EngineCore
from appliance.engine.eos import eos_token_ids
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.scheduler import Scheduler
from appliance.engine.startup_common import ModelSource, OnTrace, ReportPhase
from appliance.engine.startup_cpu import build_cpu_backend
from appliance.engine.startup_cuda import build_cuda_backend
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.protocol.wire import EngineReady


def build_core(
    settings: Settings, report: ReportPhase, on_trace: OnTrace | None = None
) -> tuple[EngineCore, EngineReady]:
    """Load the model and put scheduler, cache and runner together; what fits is decided before any weight is read.

    On a GPU if there is one. `EngineReady.startup_seconds` is left 0 for the caller. Raises `StartupError`.
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

    report("starting", f"Looking for {settings.model.model}")
    source = _find(settings)
    build_backend = build_cuda_backend if torch.cuda.is_available() else build_cpu_backend
    backend = build_backend(settings, source, report)
    plan, config = backend.plan, backend.scheduler_config
    kv_cache = KVCacheManager(
        plan.num_blocks, plan.block_size, settings.memory.enable_prefix_caching, backend.num_host_blocks
    )
    core = EngineCore(Scheduler(config, kv_cache, on_event=on_trace), backend.executor, on_trace)
    ready = EngineReady(
        model=settings.model.model,
        max_model_len=plan.max_model_len,
        vocab_size=source.facts.vocab_size,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        dtype=backend.dtype,
        device=backend.device,
        startup_seconds=0.0,
    )
    return core, ready


def _find(settings: Settings) -> ModelSource:
    from appliance.loading.model_config import load_config
    from appliance.loading.source import locate_model
    from appliance.models.facts import model_facts

    location = locate_model(settings.model)
    config = load_config(location, settings.model.hf_overrides)
    return ModelSource(location, config, model_facts(config), eos_token_ids(location, config))
