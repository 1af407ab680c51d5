"""The blocks of the key/value cache: reference counts, and the free ones in order of reuse."""

from __future__ import annotations


class BlockPool:
    """`num_blocks` blocks, numbered from 0. Every operation on one block is O(1).

    Free blocks form a doubly linked list threaded through two arrays (an entry a block, and a sentinel that is both
    ends), so that a free block whose content is wanted again leaves the middle of the list without a search.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise ValueError(f"the key/value cache needs at least one block, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self._ref_counts = [0] * num_blocks
        self._sentinel = num_blocks
        self._next = [*range(1, num_blocks + 1), 0]
        self._prev = [num_blocks, *range(num_blocks)]

    def ref_count(self, block: int) -> int:
        return self._ref_counts[block]

    def take(self, count: int) -> list[int]:
        """`count` blocks, the next in order of reuse, each with one reference. The caller knows that they are free."""
        if count > self.num_free:
            raise ValueError(f"{count} blocks asked for, {self.num_free} are free")
        following, sentinel = self._next, self._sentinel
        taken = []
        block = following[sentinel]
        for _ in range(count):
            taken.append(block)
            self._ref_counts[block] = 1
            block = following[block]
        following[sentinel] = block
        self._prev[block] = sentinel
        self.num_free -= count
        return taken

    def share(self, block: int) -> None:
        """One more reference, to a block in use or to a free one, which leaves the free list."""
        if self._ref_counts[block] == 0:
            before, after = self._prev[block], self._next[block]
            self._next[before] = after
            self._prev[after] = before
            self.num_free -= 1
        self._ref_counts[block] += 1

    def release(self, block: int, *, reuse_last: bool) -> None:
        """One reference less. After the last the block is free: to be reused last of all, or else first."""
        count = self._ref_counts[block]
        if count == 0:
            raise ValueError(f"block {block} is released, but nobody holds it")
        self._ref_counts[block] = count - 1
        if count > 1:
            return
        before = self._prev[self._sentinel] if reuse_last else self._sentinel
        after = self._next[before]
        self._next[before] = self._prev[after] = block
        self._prev[block], self._next[block] = before, after
        self.num_free += 1

    def free_blocks(self) -> list[int]:
        """The free blocks in order of reuse. For tests and diagnosis: the cost grows with the pool."""
        blocks = []
        block = self._next[self._sentinel]
        while block != self._sentinel:
            blocks.append(block)
            block = self._next[block]
        return blocks
