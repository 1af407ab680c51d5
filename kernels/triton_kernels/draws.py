"""What a draw depends on: a request's parameters, and noise that is a function of its seed, position and token id."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)  # libdevice has no interpreter


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
def draw_key(seed, position):
    """Two uint32 of a seed (64 bits in an int64) and a position; the runner's `sampling.random.draw_keys`."""
    golden = tl.full([], 0x9E3779B97F4A7C15, tl.uint64)
    stream = mix(seed.to(tl.uint64) + golden)
    bits = mix(stream + (position.to(tl.uint64) + 1) * golden)
    return bits.to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def uniform(token, low, high):
    """A float32 in (0, 1), with 32 bits near 0, for token ids and a key; the runner's `sampling.random.uniform`.

    The 32-bit hash of two multiplications with the least bias that Wellons' search found (hash-prospector, 2018).
    """
    x = token.to(tl.uint32) * 0x9E3779B1 + low
    x = (x ^ (x >> 16)) * 0x21F0AAAD + high
    x = (x ^ (x >> 15)) * 0xD35A2D97
    x = x ^ (x >> 15)
    return tl.minimum((x.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)  # 2⁻³², 1 - 2⁻²⁴


@triton.jit
def gumbel(token, low, high):
    """Gumbel noise of token ids: -log(E), E = -log(1 - `uniform`), some 10⁻⁶ from the exact value.

    Tokens that are drawn from many have a small E, which the logarithm of nearly 1 would lose: there it is a series.
    """
    share = uniform(token, low, high)
    series = share * (1.0 + share * (0.5 + share * (0.33333334 + share * 0.25)))
    exponential = tl.where(share < 0.03125, series, -0.6931472 * _fast_log2(1.0 - share))
    return -0.6931472 * _fast_log2(exponential)


@triton.jit
def _fast_log2(x):
    """Within 2⁻²² of the logarithm, in one instruction; tl.log2 takes some twenty, and noise needs no more."""
    if INTERPRETED:
        return tl.log2(x)
    else:  # noqa: RET505  # only one of the two is compiled
        return libdevice.fast_log2f(x)
