"""What a runner asks of a model."""

from __future__ import annotations

from typing import Protocol

import torch

from appliance_kernels.device_metadata import DeviceMetadata
from appliance_kernels.metadata import AttentionMetadata


class Model(Protocol):
    def __call__(
        self,
        input_ids: torch.Tensor,
        kv_caches: list[torch.Tensor],
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """input_ids [T] → hidden states of the tokens `output_rows` [N], or of all: [N, H]"""
        ...

    def compute_logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [N, H] → [N, vocab], float32 on a CPU, else of the model's dtype, in `out` if it is given"""
        ...
