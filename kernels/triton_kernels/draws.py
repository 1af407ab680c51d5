"""What a draw depends on: a request's parameters, and one random number of its seed and position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """Parameters on the device, one row a request; never reallocated, so graphs may hold them."""

    temperature: torch.Tensor  # [R] float32, 0: greedy
    top_k: torch.Tensor  # [R] int32, 0: all
    top_p: torch.Tensor  # [R] float32
    min_p: torch.Tensor  # [R] float32
    seed: torch.Tensor  # [R] int64, the 64 bits of an unsigned seed
    num_tokens: torch.Tensor  # [R] integers, the position of the token to be drawn


@triton.jit
def mix(x):
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014), uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def uniform(seed, position):
    """One float64 in [0, 1) for a seed (64 bits in an int64) and a position; the runner's `sampling.random.uniform`."""
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    stream = mix(seed.to(tl.uint64) + golden)
    bits = mix(stream + (position.to(tl.uint64) + 1) * golden)
    return (bits >> 11).to(tl.int64).to(tl.float64) * 1.1102230246251565e-16  # 2⁻⁵³
