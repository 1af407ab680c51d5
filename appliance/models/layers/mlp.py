"""The gated feed-forward block (Shazeer, 2020: "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch

from appliance.models.layers.base import Layer
from appliance.models.layers.linear import Linear, MergedLinear
from appliance.models.layers.norm import RMSNorm
from appliance_kernels.ops import add_norm_gated_linear, gelu_tanh_and_mul, silu_and_mul

ACTIVATIONS = {
    "silu": silu_and_mul,
    "swish": silu_and_mul,
    "gelu_pytorch_tanh": gelu_tanh_and_mul,
    "gelu_new": gelu_tanh_and_mul,
}


class GatedMLP(Layer):
    """`down(activation(gate(x)) * up(x))`, of a normed x."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool = False) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"the model's activation {activation!r} is not supported (supported: {', '.join(sorted(ACTIVATIONS))})"
            )
        self.gate_up_proj = MergedLinear(
            hidden_size, {"gate_proj": intermediate_size, "up_proj": intermediate_size}, bias
        )
        self.down_proj = Linear(intermediate_size, hidden_size, bias)
        self.activate = ACTIVATIONS[activation]

    def __call__(self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(this of the norm of x + residual, x + residual)"""
        gate_up = self.gate_up_proj
        gated, residual = add_norm_gated_linear(
            x, residual, norm.packed, norm.eps, gate_up.weight, gate_up.bias, self.activate
        )
        return self.down_proj(gated), residual
