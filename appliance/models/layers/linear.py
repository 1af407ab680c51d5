"""Linear layers: plain, several merged into one matrix product, and an output head that shares the embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from appliance.models.layers.base import Layer, WeightSlot, new_weight
from appliance.models.layers.embedding import Embedding
from appliance.models.layers.norm import RMSNorm
from appliance_kernels.ops import InvariantWeight, add_norm_linear, linear, pack_linear_weight


class Linear(Layer):
    """`y = x Wᵀ + b`, with W `[out_features, in_features]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        self.weight = new_weight(out_features, in_features)
        self.bias = new_weight(out_features) if bias else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)

    def into(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The same, in memory that is given."""
        return linear(x, self.weight, self.bias, out=out)

    def after(self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(this of the norm of x + residual, x + residual)"""
        return add_norm_linear(x, residual, norm.packed, norm.eps, self.weight, self.bias)

    def finalize_weights(self) -> None:
        self.weight = pack_linear_weight(self.weight.data)


class MergedLinear(Linear):
    """Projections of the same input, stacked into one matrix: one product is faster than several.

    `outputs` maps each projection's name in the checkpoint (`q_proj`, …) to its number of rows, in stacking order.
    """

    def __init__(self, in_features: int, outputs: dict[str, int], bias: bool = False) -> None:
        super().__init__(in_features, sum(outputs.values()), bias)
        self.outputs = outputs

    def weight_slots(self, prefix: str = "") -> Iterator[tuple[str, WeightSlot]]:
        siblings = prefix.removesuffix(".").rpartition(".")[0]
        siblings = f"{siblings}." if siblings else ""
        start = 0
        for name, rows in self.outputs.items():
            yield f"{siblings}{name}.weight", WeightSlot(self, "weight", start, rows)
            if self.bias is not None:
                yield f"{siblings}{name}.bias", WeightSlot(self, "bias", start, rows)
            start += rows


class TiedHead(Layer):
    """The output head of a model whose embedding matrix serves for both ends."""

    def __init__(self, embedding: Embedding) -> None:
        self.tied = (embedding,)  # in a tuple: the embedding is the model's child, not ours

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight)

    def into(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The same, in memory that is given."""
        return linear(x, self.weight, out=out)

    def finalize_weights(self) -> None:
        self.weight = pack_linear_weight(self.tied[0].weight.data)


def make_batch_invariant(model: Layer) -> None:
    """Give every matrix product of a loaded model, on a GPU, rows whose bits don't depend on the other rows."""
    for layer in model.all_layers():
        if isinstance(layer, Linear):
            layer.weight = InvariantWeight(layer.weight, layer.bias)
        elif isinstance(layer, TiedHead):
            layer.weight = InvariantWeight(layer.weight, None)
