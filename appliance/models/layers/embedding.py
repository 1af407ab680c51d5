"""Token embedding."""

from __future__ import annotations

import torch
from torch.nn.functional import embedding

from appliance.models.layers.base import Layer, new_weight


class Embedding(Layer):
    """Rows of a `[vocab_size, hidden_size]` matrix, times `scale` (rounded to the matrix's dtype) if there is one."""

    def __init__(self, vocab_size: int, hidden_size: int, scale: float | None = None) -> None:
        self.weight = new_weight(vocab_size, hidden_size)
        self.scale = scale

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = embedding(input_ids, self.weight)
        return hidden if self.scale is None else hidden * self.scale

    def finalize_weights(self) -> None:
        if self.scale is not None:
            self.scale = torch.tensor(self.scale, dtype=self.weight.dtype).item()
