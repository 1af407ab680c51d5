"""The gated feed-forward block (Shazeer, 2020: "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch

from appliance.models.layers.base import Layer
from appliance.models.layers.linear import Linear, MergedLinear
from appliance_kernels.ops import gelu_tanh_and_mul, silu_and_mul

ACTIVATIONS = {
    "silu": silu_and_mul,
    "swish": silu_and_mul,
    "gelu_pytorch_tanh": gelu_tanh_and_mul,
    "gelu_new": gelu_tanh_and_mul,
}


class GatedMLP(Layer):
    """`down(activation(gate(x)) * up(x))`"""

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

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activate(self.gate_up_proj(x)))
