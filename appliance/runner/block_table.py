"""Which cache blocks each row of the persistent batch owns, in order."""

from __future__ import annotations

import numpy as np


class BlockTable:
    """A table [max_num_seqs, max_blocks] of kernel blocks that takes diffs, never rewrites.

    The scheduler deals in allocation blocks; a kernel may want smaller ones. An allocation block `b` of
    `ratio` kernel blocks is the kernel blocks `b * ratio … b * ratio + ratio - 1` (hybrid block sizes).
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, kernel_block_size: int) -> None:
        if block_size % kernel_block_size:
            raise ValueError(
                f"block_size {block_size} is not a multiple of the kernel's block size {kernel_block_size}"
            )
        self.kernel_block_size = kernel_block_size
        self._ratio = block_size // kernel_block_size
        columns = -(-max_model_len // block_size) * self._ratio
        self._table = np.zeros((max_num_seqs, columns), dtype=np.int32)
        self._count = np.zeros(max_num_seqs, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        return self._table.shape

    def append(self, row: int, block_ids: list[int]) -> tuple[int, np.ndarray]:
        """Add allocation blocks at the end of `row`; returns the first column that changed, and the kernel blocks there
        and in those after it."""
        blocks = np.asarray(block_ids, dtype=np.int32)
        if self._ratio > 1:
            blocks = (blocks[:, None] * self._ratio + np.arange(self._ratio, dtype=np.int32)).reshape(-1)
        start = self._count[row]
        self._table[row, start : start + len(blocks)] = blocks
        self._count[row] = start + len(blocks)
        return int(start), blocks

    def clear(self, row: int) -> None:
        self._table[row, : self._count[row]] = 0
        self._count[row] = 0

    def tables(self, rows: np.ndarray) -> np.ndarray:
        """The kernel blocks of `rows` [R]: [R, longest] int32, 0 past each row's end."""
        return self._table[rows, : int(self._count[rows].max())]

    def common_prefix(self, rows: np.ndarray) -> int:
        """With how many blocks all of `rows` [R] begin."""
        tables = self._table[rows, : int(self._count[rows].min())]
        differs = (tables != tables[0]).any(0)
        return int(differs.argmax()) if differs.any() else tables.shape[1]

    def first_blocks(self, rows: np.ndarray) -> np.ndarray:
        """The block with which each of `rows` [R] begins."""
        return self._table[rows, 0]

    def slots(self, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The slot of each token: `rows` [T], `positions` [T]; returns [T] int64."""
        size = self.kernel_block_size
        return self._table[rows, positions // size].astype(np.int64) * size + positions % size
