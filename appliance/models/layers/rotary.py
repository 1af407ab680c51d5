"""Rotary position embedding (Su et al., 2021) and the ways of stretching it to longer contexts.

Each way is a change of the inverse frequencies, and all happen once, when the table of cosines and sines is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


def cos_sin_table(
    rope: Mapping[str, Any], head_dim: int, max_position_embeddings: int, length: int, device: torch.device
) -> torch.Tensor:
    """`[length, rotary_dim]` float32: the cosines of each position, then its sines.

    `rope` is the `rope_parameters` of a transformers configuration (of one layer type, if it has several);
    `max_position_embeddings` is the configuration's. Raises ValueError for an unknown kind of scaling.
    """
    inv_freq, magnitude = inverse_frequencies(rope, head_dim, max_position_embeddings)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inv_freq)
    return (torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude).to(device)


def inverse_frequencies(
    rope: Mapping[str, Any], head_dim: int, max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """(`[rotary_dim / 2]` float32 radians per position, factor of the cosines and sines)"""
    rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
    theta = float(rope["rope_theta"])
    inv_freq = 1.0 / theta ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    kind = rope.get("rope_type", "default")
    # "dynamic" changes nothing up to max_position_embeddings, and the engine goes no further (see `facts`): beyond,
    # each new length would need other frequencies for keys that are in the cache already.
    if kind in ("default", "dynamic"):
        return inv_freq, 1.0
    if kind == "linear":
        return inv_freq / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(inv_freq, rope), 1.0
    if kind == "yarn":
        return _yarn(inv_freq, rope, rotary_dim, theta, max_position_embeddings)
    if kind == "frequency_factors":  # a GGUF file's form of llama3: the divisors themselves
        return inv_freq / torch.tensor(rope["factors"], dtype=torch.float32), 1.0
    raise ValueError(f"rope_type {kind!r} is not supported (supported: default, linear, dynamic, llama3, yarn)")


def _llama3(inv_freq: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones are kept, those between are blended."""
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * inv_freq / (2 * math.pi)  # within the original context
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * inv_freq + (1 - kept) * inv_freq / rope["factor"]


def _yarn(
    inv_freq: torch.Tensor, rope: Mapping[str, Any], rotary_dim: int, theta: float, max_position_embeddings: int
) -> tuple[torch.Tensor, float]:
    """YaRN (Peng et al., 2023): interpolate by parts, and sharpen the attention by `magnitude`."""
    original = rope.get("original_max_position_embeddings") or max_position_embeddings
    factor = rope["factor"]

    def dimension_that_turns(times: float) -> float:
        return rotary_dim * math.log(original / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension_that_turns(rope.get("beta_fast") or 32)
    last = dimension_that_turns(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    dimensions = torch.arange(rotary_dim // 2, dtype=torch.float32)
    interpolated = ((dimensions - first) / ((last - first) or 0.001)).clamp(0.0, 1.0)
    stretched = interpolated * inv_freq / factor + (1 - interpolated) * inv_freq

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    magnitude = rope.get("attention_factor")
    if magnitude is None:
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        magnitude = mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"]) if both else mscale(1.0)
    return stretched, float(magnitude)
