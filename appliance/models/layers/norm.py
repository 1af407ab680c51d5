"""Root-mean-square norms (Zhang and Sennrich, 2019)."""

from __future__ import annotations

import torch

from appliance.models.layers.base import Layer, new_weight
from appliance_kernels.ops import add_rms_norm, pack_norm_weight, rms_norm


class RMSNorm(Layer):
    """`x / rms(x) * weight` over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        self.weight = new_weight(size)
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, self.packed, self.eps)

    def finalize_weights(self) -> None:
        self.packed = pack_norm_weight(self.weight.data)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual)"""
        return add_rms_norm(x, residual, self.packed, self.eps)


class OffsetRMSNorm(RMSNorm):
    """Gemma's: `x / rms(x) * (1 + weight)`. The sum is kept in float32, where small weights are not rounded away."""

    def finalize_weights(self) -> None:
        self.weight = torch.nn.Parameter(1.0 + self.weight.data.float(), requires_grad=False)
        super().finalize_weights()
