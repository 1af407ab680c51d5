"""Keys and values in FP8 E4M3 (Micikevicius et al. 2022; torch.float8_e4m3fn), with scale 1, in plain PyTorch."""

from __future__ import annotations

import functools

import torch

LARGEST = 448.0


def stored_as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a cache of `dtype` holds of x. In FP8 what is beyond ±448 becomes ±448; NaN stays NaN."""
    if dtype == torch.float8_e4m3fn:
        x = x.clamp(-LARGEST, LARGEST)  # not left to torch's conversion, which in older versions makes these NaN
    return x.to(dtype)


def from_e4m3(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float8_e4m3fn, contiguous, with an even number of columns → `dtype`, exactly.

    Two numbers at a time through a table: on the CPU ten times as fast as torch's own conversion.
    """
    pairs = codes.view(torch.uint16).view(-1).to(torch.int32)
    return _table(dtype).index_select(0, pairs).view(dtype).view(codes.shape)


@functools.cache
def _table(dtype: torch.dtype) -> torch.Tensor:
    """[65536] integers, each the two numbers of `dtype` that a pair of codes stands for; 256 or 512 KiB."""
    pairs = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    numbers = pairs.view(torch.float8_e4m3fn).to(dtype)
    return numbers.view(torch.int64 if dtype == torch.float32 else torch.int32)
