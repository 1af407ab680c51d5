"""Random weights, to measure or test an engine without a checkpoint."""

from __future__ import annotations

import torch

from appliance.models.causal_lm import CausalLM


def fill_model(model: CausalLM, dtype: torch.dtype, device: torch.device, seed: int) -> None:
    """Uniform in ±1e-3: small enough that no activation overflows in 16 bits.

    The same seed gives the same weights, on the same kind of device.
    """
    generator = torch.Generator(device).manual_seed(seed)
    for _, slot in model.weight_slots():
        slot.materialize(dtype, device)
        slot.fill(torch.empty(slot.shape, device=device).uniform_(-1e-3, 1e-3, generator=generator))
