"""The kernels as the models call them. Which implementation runs is decided here and nowhere else.

Without a compiled kernel for the device, the PyTorch reference runs: slow on a GPU, right everywhere.
"""

from __future__ import annotations

import torch

from appliance_kernels import cpu_attention, reference
from appliance_kernels.linear import PackedLinearWeight, linear, pack_linear_weight
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.reference import (
    add_rms_norm,
    gelu_tanh_and_mul,
    rms_norm,
    rotary_and_write_kv,
    rotary_rows,
    silu_and_mul,
)

__all__ = [
    "AttentionMetadata",
    "PackedLinearWeight",
    "add_rms_norm",
    "gelu_tanh_and_mul",
    "linear",
    "pack_linear_weight",
    "paged_attention",
    "rms_norm",
    "rotary_and_write_kv",
    "rotary_rows",
    "silu_and_mul",
]


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention over paged keys and values; meaning, shapes and dtypes as `reference.paged_attention`."""
    if softcap is None and q.device.type == "cpu":
        return cpu_attention.paged_attention(q, kv_cache, metadata, scale, sliding_window)
    return reference.paged_attention(q, kv_cache, metadata, scale, sliding_window, softcap)
