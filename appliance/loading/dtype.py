"""Which number format the weights and activations get."""

from __future__ import annotations

import logging
from typing import Any

import torch

from appliance.loading.errors import ModelLoadError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(requested: str, config: Any, device: torch.device) -> torch.dtype:
    """The dtype for the setting `dtype` and a transformers configuration; logs what `auto` chose, and why."""
    if requested != "auto":
        if requested == "float16" and config.model_type == "gemma3_text":
            raise ModelLoadError("dtype float16 overflows in Gemma 3; use bfloat16 or float32")
        return DTYPES[requested]
    saved = saved_dtype(config)
    fast_bfloat16 = device.type != "cpu" or processor_has_bfloat16()
    if saved == torch.float32 and device.type != "cpu":
        chosen, reason = torch.bfloat16, "saved in float32, and a GPU is twice as fast in 16 bits"
    elif saved == torch.float32:
        chosen, reason = torch.float32, "saved in float32"
    elif fast_bfloat16 and (saved == torch.bfloat16 or device.type == "cpu" or config.model_type == "gemma3_text"):
        chosen, reason = torch.bfloat16, f"saved in {_name(saved)}, and the processor has bfloat16 instructions"
    elif device.type == "cpu":
        chosen, reason = torch.float32, f"saved in {_name(saved)}, but this processor has no bfloat16 instructions"
    else:
        chosen, reason = saved, f"saved in {_name(saved)}"
    logger.info("dtype auto: %s (%s)", _name(chosen), reason)
    return chosen


def kv_cache_dtype(setting: str, model_dtype: torch.dtype) -> torch.dtype:
    """The dtype of the KV cache for the setting `kv_cache_dtype` (auto or fp8): FP8 is E4M3 with scale 1."""
    return torch.float8_e4m3fn if setting == "fp8" else model_dtype


def saved_dtype(config: Any) -> torch.dtype:
    """What the configuration says; float32 if it says nothing, as transformers understands it."""
    dtype = getattr(config, "dtype", None) or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def processor_has_bfloat16() -> bool:
    """AVX-512 BF16 or AMX: without them, bfloat16 products on a CPU are emulated."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
