"""The kernels as the models call them. Which implementation runs is decided here and nowhere else.

Without a compiled kernel for the device, the PyTorch reference runs: slow on a GPU, right everywhere.
"""

from __future__ import annotations

import torch

from appliance_kernels import cpu_attention, cpu_norm, reference
from appliance_kernels.cpu_norm import PackedNormWeight
from appliance_kernels.linear import PackedLinearWeight, linear, pack_linear_weight
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.reference import (
    gelu_tanh_and_mul,
    rotary_and_write_kv,
    rotary_rows,
    silu_and_mul,
)

__all__ = [
    "AttentionMetadata",
    "PackedLinearWeight",
    "PackedNormWeight",
    "add_rms_norm",
    "gelu_tanh_and_mul",
    "linear",
    "pack_linear_weight",
    "pack_norm_weight",
    "paged_attention",
    "rms_norm",
    "rotary_and_write_kv",
    "rotary_rows",
    "silu_and_mul",
]


def pack_norm_weight(weight: torch.Tensor) -> torch.Tensor | PackedNormWeight:
    """`weight` [H] in the form that the norms take fastest on its device."""
    if weight.device.type != "cpu":
        return weight
    weight = weight.float()
    return PackedNormWeight(weight, torch.cat((weight, weight)))


def rms_norm(x: torch.Tensor, weight: torch.Tensor | PackedNormWeight, eps: float) -> torch.Tensor:
    """Meaning, shapes and dtypes as `reference.rms_norm`; x [T, H] with a packed weight."""
    if isinstance(weight, PackedNormWeight):
        return cpu_norm.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | PackedNormWeight, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Meaning, shapes and dtypes as `reference.add_rms_norm`."""
    if isinstance(weight, PackedNormWeight):
        residual = residual + x
        return cpu_norm.rms_norm(residual, weight, eps), residual
    return reference.add_rms_norm(x, residual, weight, eps)


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
