"""Tile sizes of products with few rows. Nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from appliance_kernels.triton_kernels.attention_configs import Card

PIECE = 16  # bytes that a thread loads at once


@dataclass(frozen=True, slots=True)
class SkinnyTile:
    """What one program multiplies at once, and how many programs there may be."""

    rows: int  # of the weight (of gate and of `up` each), a power of two
    block: int  # elements of K, a power of two
    num_warps: int
    most_programs: int

    def num_programs(self, num_rows: int) -> int:
        """The grid for a weight of `num_rows` rows: programs whose numbers of tiles differ by at most one."""
        tiles = triton.cdiv(num_rows, self.rows)
        return triton.cdiv(tiles, triton.cdiv(tiles, self.most_programs))


def skinny_tile(
    num_tokens: int,
    num_rows: int,
    size: int,
    dtype: torch.dtype,
    facts: Card,
    *,
    whole_rows: bool = False,
    matrices: int = 1,
) -> SkinnyTile:
    """The tile for a weight [matrices · num_rows, size]; with `whole_rows` a program holds x whole, in registers.

    A thread has eight pieces of a tile, and as many of the next, on their way, with more tokens four: at 512 threads a
    multiprocessor 64 KiB to 128 KiB, several times what hides the latency of memory. What more tokens need registers
    for is x, in float32.
    """
    piece = PIECE // dtype.itemsize
    block = max(triton.next_power_of_2(size), 128 * piece)
    if not whole_rows and size > 2048 and (num_tokens > 2 or size > 4096):
        block = 4096 if num_tokens <= 2 and size % 4096 == 0 else 2048  # in parts, the last of them not mostly empty
    pieces = 2 if num_tokens <= 2 else 1  # of a row, in a thread
    num_warps = min(max(block // (32 * piece * pieces), 4), 16)
    pieces = block // (32 * piece * num_warps)
    rows = max((8 if num_tokens == 1 else 4) // (pieces * matrices), 1)
    while rows > 1 and triton.cdiv(num_rows, rows) < 2 * facts.multiprocessors:  # a small weight: all of the card first
        rows //= 2
    return SkinnyTile(rows, block, num_warps, facts.multiprocessors * (16 // num_warps))
