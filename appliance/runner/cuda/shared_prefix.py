"""Which of the decoding requests begin with the same blocks, so that attention reads these once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from appliance.runner.block_table import BlockTable

# Tokens that a step must be spared to read, in each layer, before the second pass over a prefix is worth its launch.
WORTH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Sharing:
    """The largest group of a batch."""

    leader: int  # a row whose block table begins with the shared blocks
    num_tokens: np.ndarray  # [R] int32: tokens that each request shares, 0 for those outside the group


class SharedPrefixFinder:
    """Looks anew only when the batch has other rows: what a row begins with stays."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._generation = 0  # counts changes of what rows hold
        self._key: tuple[int, bytes] | None = None
        self._found: Sharing | None = None

    def rows_changed(self) -> None:
        """Some row was taken by another request."""
        self._generation += 1

    def find(self, rows: np.ndarray) -> Sharing | None:
        """The group among `rows` [R] int64, or None when none is worth it. The same object while nothing changes."""
        key = (self._generation, rows.tobytes())
        if key != self._key:
            self._key, self._found = key, self._search(rows)
        return self._found

    def _search(self, rows: np.ndarray) -> Sharing | None:
        first = self._table.first_blocks(rows)
        blocks, counts = np.unique(first, return_counts=True)
        largest = int(counts.argmax())
        if counts[largest] < 2:
            return None
        member = first == blocks[largest]
        group = rows[member]
        # A request's last block is its own; a group that ends with one is cut before it.
        num_tokens = self._table.common_prefix(group) * self._table.kernel_block_size
        if (len(group) - 1) * num_tokens < WORTH_TOKENS:
            return None
        return Sharing(int(group[0]), np.where(member, num_tokens, 0).astype(np.int32))
