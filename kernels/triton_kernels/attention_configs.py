"""Tile sizes of the attention kernels for each architecture. Nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

# Shared memory a program may use, by compute capability, less what the compiler keeps for itself.
SHARED_MEMORY = {(8, 0): 163 << 10, (8, 6): 99 << 10, (8, 7): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10}
SMALLEST_SHARED_MEMORY = 99 << 10


HOPPER_UNIT = 16  # tokens of one copy of Hopper's decode kernel


@dataclass(frozen=True, slots=True)
class HopperRing:
    """How Hopper's decode kernel keeps keys and values in shared memory."""

    tile: int  # tokens multiplied at once
    num_stages: int  # tiles of keys and of values


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """How the decode kernels are cut. Their grid is `num_programs`, whatever the batch.

    `tile`, `num_warps` and `num_stages` are the portable kernel's.
    """

    tile: int  # tokens read at once
    num_programs: int
    min_tiles: int  # a program has at least so many tiles: below that, splitting costs more than it gains
    num_warps: int
    num_stages: int
    unit: int | None = None  # work is divided at multiples of so many tokens; None: of a tile, or of HOPPER_UNIT
    hopper: HopperRing | None = None  # for Hopper's kernel, where it fits; None: always the portable one

    @property
    def unit_tokens(self) -> int:
        return self.unit or (HOPPER_UNIT if self.hopper else self.tile)

    @property
    def min_units(self) -> int:
        return self.min_tiles * self.tile // self.unit_tokens


@dataclass(frozen=True, slots=True)
class TileConfig:
    """How the kernels with many queries are cut."""

    rows: int  # (query token, query head) pairs of one key/value head in a program
    tile: int  # tokens of the context read at once
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Card:
    """What the tile sizes depend on."""

    shared_memory: int  # bytes a program
    multiprocessors: int
    wgmma: bool  # has Hopper's matrix instructions


@cache
def card(device: torch.device) -> Card:
    """The facts of a CUDA device; for the CPU, where Triton's interpreter runs, those of a small one."""
    if device.type != "cuda":
        return Card(shared_memory=SMALLEST_SHARED_MEMORY, multiprocessors=4, wgmma=False)
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return Card(
        shared_memory=SHARED_MEMORY.get(capability, SMALLEST_SHARED_MEMORY),
        multiprocessors=properties.multi_processor_count,
        wgmma=properties.major == 9,
    )


def _stages(tile_bytes: int, fixed: int, budget: int, most: int, *, all_stored: bool) -> int:
    """Pipeline stages, of one key and one value tile each, that fit the budget beside `fixed` bytes.

    The compiler keeps a stage less than asked for in shared memory, but for Hopper's matrix instructions all of them.
    """
    fitting = (budget - fixed) // tile_bytes + (0 if all_stored else 1)
    return max(1, min(most, fitting))


@cache
def decode_config(device: torch.device, head_dim: int, dtype: torch.dtype) -> DecodeConfig:
    """Two programs a multiprocessor, so that one's first and last tiles overlap the other's stream.

    `dtype` is the cache's: tiles of equal bytes, as the stream of bytes is the limit.
    """
    facts = card(device)
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    tile = max(16, min(128 if dtype.itemsize == 1 else 64, 16384 // row_bytes))
    # measured on Hopper at 128: faster than one program with a deeper ring, and than the portable kernel
    rings = {64: HopperRing(tile=128, num_stages=3), 128: HopperRing(tile=64, num_stages=3)}
    return DecodeConfig(
        tile=tile,
        num_programs=2 * facts.multiprocessors,
        min_tiles=256 // tile,  # measured: as fast as 512 in large batches, and half the time in the smallest
        num_warps=4,
        num_stages=_stages(2 * tile * row_bytes, 12 << 10, facts.shared_memory // 2, most=4, all_stored=False),
        hopper=rings.get(head_dim) if facts.wgmma and dtype.itemsize == 2 else None,
    )


@cache
def mixed_config(device: torch.device, head_dim: int, dtype: torch.dtype) -> TileConfig:
    """Tiles for many queries: matrix instructions are the limit, so the query tile is as tall as registers allow.

    `dtype` is the queries': an FP8 cache is converted to 16 bits in shared memory, so it needs as much.
    """
    facts = card(device)
    row_bytes = triton.next_power_of_2(head_dim) * dtype.itemsize
    if dtype == torch.float32:  # no matrix instructions in full float32: small tiles, or registers overflow
        rows, tile, num_warps = 16, 16, 4
    elif row_bytes <= 256:
        rows, tile, num_warps = 128, 64, 8
    elif facts.wgmma:
        rows, tile, num_warps = 128, 32, 8
    else:
        rows, tile, num_warps = 64, 32, 4
    wgmma = facts.wgmma and dtype != torch.float32
    fixed = rows * (row_bytes + tile * dtype.itemsize)  # queries and probabilities
    stages = _stages(2 * tile * row_bytes, fixed, facts.shared_memory, most=3, all_stored=wgmma)
    return TileConfig(rows, tile, num_warps, stages)
