"""`pagebox plan`: whether a model fits a GPU with these settings, and what is left for the KV cache; needs no GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from appliance.config import ConfigError, Settings, add_settings_arguments, require_model, resolve
from appliance.engine.memory.gpu_plan import MemoryPlan, estimate
from appliance.engine.memory.gpus import GPUS, Gpu, local_gpu
from appliance.engine.memory.ledger import MemoryLedger
from appliance.engine.startup_errors import StartupError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser)
    parser.add_argument(
        "--gpu",
        choices=list(GPUS),
        metavar="GPU",
        help=f"the GPU to plan for: {', '.join(GPUS)}. Default: the one of this machine, with what is taken of it now.",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, sizes in bytes")


def run(options: argparse.Namespace) -> int:
    from appliance.loading.errors import ModelFolderMissing, ModelLoadError

    resolved = resolve(options)
    require_model(resolved)
    gpu = GPUS[options.gpu] if options.gpu else local_gpu()
    if gpu is None:
        raise ConfigError(f"This machine has no NVIDIA GPU to plan for; name one with --gpu: {', '.join(GPUS)}.")
    for notice in resolved.notices:
        print(notice, file=sys.stderr)
    try:
        plan, dtype = _plan(resolved.settings, gpu)
    except ModelFolderMissing as error:
        raise ConfigError(f"{error}.") from error
    except (StartupError, ModelLoadError) as error:
        print(f"pagebox plan: {str(error).rstrip('.')}.", file=sys.stderr)
        return 1
    ledger = MemoryLedger.of(plan)
    if options.json:
        print(json.dumps({"model": resolved.settings.model.model, "gpu": gpu.name, "dtype": dtype} | ledger.as_json()))
    else:
        print(f"{resolved.settings.model.model} in {dtype} on {gpu.name}", *ledger.as_lines(), sep="\n")
    return 0


def _plan(settings: Settings, gpu: Gpu) -> tuple[MemoryPlan, str]:
    """The plan, and the name of the dtype. Imports torch, for its names of dtypes alone."""
    import torch

    from appliance.loading.dtype import choose_dtype
    from appliance.loading.model_config import load_config
    from appliance.loading.source import locate_model
    from appliance.models.facts import model_facts

    without_weights = dataclasses.replace(settings.model, load_format="dummy")  # nor fetches any
    config = load_config(locate_model(without_weights), settings.model.hf_overrides)
    dtype = choose_dtype(settings.model.dtype, config, torch.device("cuda"))
    plan = estimate(model_facts(config), settings, gpu, dtype.itemsize)
    return plan, str(dtype).removeprefix("torch.")
