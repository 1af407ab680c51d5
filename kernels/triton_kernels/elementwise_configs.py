"""Tile sizes of the kernels that do little arithmetic. Nothing is tuned at run time.

They are bound by memory or by latency on every card from sm_80 on, so one table serves all: a thread has two to four
16-byte loads in flight, and the grid has many more programs than the card has multiprocessors at large T.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program works on, and with how many threads."""

    block: int  # elements; for `rotary_and_write_kv`, heads
    num_warps: int


# A tile of the vocabulary, and the runs of tokens in it whose maxima are kept. The same for every batch size, so that
# sums, and with them the sampled tokens, do not depend on the batch.
VOCAB_TILE = 4096
VOCAB_GROUP = 128
VOCAB_WARPS = 4


def norm_tile(size: int) -> Tile:
    """A program holds a whole row of `size` elements, 16 a thread, or 32 in the widest."""
    block = triton.next_power_of_2(size)
    return Tile(block, min(max(block // 512, 1), 16))


def activation_tile(size: int) -> Tile:
    """Part of a row of `size` outputs: the larger of two tiles if it divides the row."""
    return Tile(2048, 4) if size % 2048 == 0 else Tile(1024, 4)


def rotary_tile(num_q_heads: int, head_dim: int) -> Tile:
    """Heads of a program: as many as make 1,024 elements, so that each thread of two warps has 16-byte accesses."""
    heads = max(1024 // triton.next_power_of_2(head_dim), 1)
    return Tile(min(heads, triton.next_power_of_2(num_q_heads)), 2)
