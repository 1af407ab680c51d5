"""Random paged batches for the attention tests."""

from __future__ import annotations

import random

import torch

from appliance_kernels.metadata import AttentionMetadata


def random_batch(
    queries_and_lengths: list[tuple[int, int]],
    block_size: int,
    num_blocks: int,
    *,
    shared_blocks: int = 0,
    seed: int = 0,
) -> AttentionMetadata:
    """Requests of (query tokens, total tokens) over shuffled blocks; the first `shared_blocks` are common to all."""
    free = list(range(1, num_blocks))
    random.Random(seed).shuffle(free)
    shared = [free.pop() for _ in range(shared_blocks)]
    widest = max(-(-length // block_size) for _, length in queries_and_lengths)
    tables = torch.zeros(len(queries_and_lengths), widest + 1, dtype=torch.int32)
    starts, positions, slots = [0], [], []
    for r, (count, length) in enumerate(queries_and_lengths):
        needed = -(-length // block_size)
        blocks = (shared + [free.pop() for _ in range(max(needed - len(shared), 0))])[:needed]
        tables[r, :needed] = torch.tensor(blocks, dtype=torch.int32)
        starts.append(starts[-1] + count)
        for p in range(length - count, length):
            positions.append(p)
            slots.append(blocks[p // block_size] * block_size + p % block_size)
    return AttentionMetadata(
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        block_tables=tables,
        query_start=starts,
        seq_lens=[length for _, length in queries_and_lengths],
        block_size=block_size,
    )
