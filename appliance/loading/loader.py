"""From the settings to a model that is ready to run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from appliance.loading import dummy_format, fill, gguf_format, numpy_format, pt_format, safetensors_format
from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError
from appliance.models.causal_lm import CausalLM
from appliance.models.registry import model_class

FORMATS = {"safetensors": safetensors_format, "gguf": gguf_format, "pt": pt_format, "npcache": numpy_format}
FILE_NAMES = {
    "safetensors": "model.safetensors or model.safetensors.index.json",
    "gguf": "*.gguf",
    "pt": "pytorch_model.bin or pytorch_model.bin.index.json",
    "npcache": "pytorch_model.bin or pytorch_model.bin.index.json",
}
AUTO_FORMATS = ("safetensors", "gguf", "pt")  # in this order

logger = logging.getLogger(__name__)


def load_model(
    location: Path,
    config: Any,
    *,
    load_format: str,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    seed: int = 0,
    progress: Callable[[float], None] = lambda fraction: None,
) -> CausalLM:
    """The model at `location` (see `locate_model`) with the configuration `config` (see `load_config`).

    `load_format` is the setting of that name, `max_model_len` the longest context that will be run, `seed` that of the
    random weights of `dummy`. `progress` is called with the fraction read, from 0 to 1. The weights are read one
    tensor at a time into their place; nothing is in host memory twice. Raises ModelLoadError.
    """
    started = time.monotonic()
    try:
        model = model_class(config.architectures)(config, max_model_len, device)
    except (ValueError, KeyError) as error:
        raise ModelLoadError(f"{location}: {error}") from error
    if load_format == "dummy":
        dummy_format.fill_model(model, dtype, device, seed)
    else:
        files = open_checkpoint(location, load_format)
        fill.fill_model(model, files, dtype, device, progress)
    progress(1.0)
    fill.finalize_model(model)
    logger.info("loaded %s in %.1f s", location, time.monotonic() - started)
    return model


def open_checkpoint(location: Path, load_format: str) -> list[CheckpointFile]:
    """The weight files of a folder (or a GGUF file) in the asked format; for `auto`, in the first that is there."""
    formats = AUTO_FORMATS if load_format == "auto" else (load_format,)
    for name in formats:
        files = FORMATS[name].open_files(location)
        if files:
            return files
    expected = "; ".join(FILE_NAMES[name] for name in formats)
    raise ModelLoadError(f"{location}: no weights there for load-format {load_format} (looked for {expected})")
