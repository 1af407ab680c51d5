"""What the host tells the device in a step, in few copies."""

from __future__ import annotations

import numpy as np
import torch

# Every part begins at a multiple of 64 bytes: Triton compiles a kernel anew for pointers that are not aligned to 16.
_ALIGNMENT = 16  # elements


class Staging:
    """int32 arrays of a step, one behind the other, in pinned memory and at the same places on the device.

    The device has one buffer, which the stream's order protects; the host has `num_slots`, used in turn: a step may
    begin once the device has done the one `num_slots` before it.
    """

    def __init__(self, capacity: int, num_slots: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._host = [torch.empty(capacity, dtype=torch.int32, pin_memory=pinned) for _ in range(num_slots)]
        self._arrays = [tensor.numpy() for tensor in self._host]
        self._device = torch.zeros(capacity, dtype=torch.int32, device=device)
        self._slot = 0
        self._used = 0
        self._sent = 0

    def begin(self) -> None:
        """Start a step."""
        self._slot = (self._slot + 1) % len(self._host)
        self._used = self._sent = 0

    def reserve(self, size: int) -> tuple[np.ndarray, torch.Tensor]:
        """The next `size` elements, on the host, to be written before `send`, and on the device, to be read after."""
        start, end = self._used, self._used + size
        self._used = -(-end // _ALIGNMENT) * _ALIGNMENT
        if end > len(self._device):
            raise ValueError(f"a step's inputs take more than the {len(self._device)} elements that there are")
        return self._arrays[self._slot][start:end], self._device[start:end]

    def put(self, values: np.ndarray) -> torch.Tensor:
        """`values` [N], on the device after `send`."""
        host, device = self.reserve(len(values))
        host[:] = values
        return device

    def send(self) -> None:
        """Copy what was put since the last time."""
        start, end = self._sent, min(self._used, len(self._device))
        self._device[start:end].copy_(self._host[self._slot][start:end], non_blocking=True)
        self._sent = end
