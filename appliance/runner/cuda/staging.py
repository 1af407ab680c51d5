"""A step's small inputs reach the device in one asynchronous copy from pinned memory."""

from __future__ import annotations

import numpy as np
import torch

_ALIGNMENT = 4  # int32 elements: 16 bytes, what a vector load wants


class Staging:
    """A ring of pinned buffers. A buffer is written again only when the copy from it has long finished."""

    def __init__(self, capacity: int, depth: int, device: torch.device) -> None:
        """`capacity` in int32 elements, alignment included."""
        self._host = [torch.empty(capacity, dtype=torch.int32, pin_memory=True) for _ in range(depth)]
        self._device = [torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(depth)]
        self._copied = [torch.cuda.Event() for _ in range(depth)]
        self._next = 0

    def send(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Device copies of 1-dimensional int32 arrays; valid until `depth` further calls."""
        turn = self._next
        self._next = (turn + 1) % len(self._host)
        self._copied[turn].synchronize()
        host = self._host[turn].numpy()
        spans = []
        end = 0
        for array in arrays:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + len(array)
            host[start:end] = array
            spans.append((start, end))
        self._device[turn][:end].copy_(self._host[turn][:end], non_blocking=True)
        self._copied[turn].record()
        return [self._device[turn][start:end] for start, end in spans]
