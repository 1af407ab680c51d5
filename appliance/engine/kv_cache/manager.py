"""Gives blocks to requests and takes them back; keeps full blocks findable for those that come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engine.kv_cache.block_pool import BlockPool
from appliance.engine.kv_cache.prefix_index import PrefixIndex, block_hash, root_hash
from appliance.engine.request import Request, RequestError


@dataclass(slots=True, frozen=True)
class CachedPrefix:
    """Blocks that already hold the beginning of a request. Valid until the next allocation."""

    block_ids: list[int]
    num_free: int  # of them held by nobody: taking the prefix takes so many blocks off the free list


class KVCacheManager:
    """Allocation in units of `block_size` tokens (which may be a multiple of what the attention kernel pages by).

    A full block enters the prefix index when its filling is *scheduled*. The runner writes a layer's keys and values of
    the whole step before that layer's attention reads any, so a request admitted later in the same step may already
    attend to them, and requests that arrive together compute a common prefix once. Whoever schedules has to `withdraw`
    what was promised by a step that failed.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(num_blocks)

    @property
    def num_blocks(self) -> int:
        return self.pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self.pool.num_free

    @property
    def usage(self) -> float:
        """Blocks held by requests over all blocks, 0 to 1. Cached blocks that nobody holds count as free."""
        return 1.0 - self.pool.num_free / self.pool.num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def check_fits(self, request: Request) -> None:
        """Raise `RequestError` when the whole cache is too small for `request` alone."""
        # The last token that a request can get is never computed: the request ends with it.
        num_blocks = self.blocks_for(request.max_total_tokens - 1)
        if num_blocks > self.num_blocks:
            num_output_tokens = request.max_total_tokens - request.num_prompt_tokens
            raise RequestError(
                "max_tokens",
                f"{request.num_prompt_tokens} prompt tokens and {num_output_tokens} generated ones need {num_blocks} "
                f"key/value cache blocks of {self.block_size} tokens, and the cache has {self.num_blocks} in all; "
                "lower max_tokens, shorten the prompt, or give the server more cache memory or a smaller max_model_len",
            )

    def blocks_to_come(self, request: Request) -> int:
        """Blocks that `request` will ask for soon: for all its known tokens, and one to grow unless it ends before.

        The one to grow keeps a full cache from taking in a request only to preempt it a few tokens later.
        """
        num_tokens = min(request.num_tokens + self.block_size, request.max_total_tokens - 1)
        return max(0, self.blocks_for(num_tokens) - len(request.block_ids))

    def find_prefix(self, request: Request) -> CachedPrefix:
        """The longest cached beginning of `request`, short of its last token, which must be computed."""
        blocks: list[int] = []
        num_free = 0
        if self.enable_prefix_caching:
            for i in range((request.num_tokens - 1) // self.block_size):
                block = self.index.find(self._block_hash(request, i))
                if block is None:
                    break
                blocks.append(block)
                num_free += self.pool.ref_count(block) == 0
        return CachedPrefix(blocks, num_free)

    def take_prefix(self, request: Request, prefix: CachedPrefix) -> None:
        """Make `prefix` the first blocks of `request`, which holds none."""
        for block in prefix.block_ids:
            self.pool.share(block)
        request.block_ids = list(prefix.block_ids)
        request.num_indexed_blocks = len(prefix.block_ids)

    def grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """Give `request` blocks for its first `num_tokens` tokens; the new ones, or None when too few are free."""
        count = self.blocks_for(num_tokens) - len(request.block_ids)
        if count <= 0:
            return []
        if count > self.pool.num_free:
            return None
        blocks = self.pool.take(count)
        for block in blocks:
            self.index.forget(block)
        request.block_ids += blocks
        return blocks

    def promise(self, request: Request, num_tokens: int) -> list[int]:
        """Index the blocks that are full once the first `num_tokens` tokens are computed; returns the added ones."""
        if not self.enable_prefix_caching:
            return []
        num_full = num_tokens // self.block_size
        promised = []
        for i in range(request.num_indexed_blocks, num_full):
            block = request.block_ids[i]
            if self.index.add(self._block_hash(request, i), block):
                promised.append(block)
        request.num_indexed_blocks = max(request.num_indexed_blocks, num_full)
        return promised

    def withdraw(self, blocks: Sequence[int]) -> None:
        """Nobody is to find `blocks` any more: what they were to hold may not be there."""
        for block in blocks:
            self.index.forget(block)

    def free(self, request: Request) -> int:
        """Take all blocks from `request`; returns how many. Their content stays findable until they are reused.

        The last block becomes free first, hence is reused first: the shorter a prefix, the likelier somebody shares it.
        Blocks that nobody could find are reused before all others.
        """
        count = len(request.block_ids)
        for block in reversed(request.block_ids):
            self.pool.release(block, reuse_last=block in self.index)
        request.block_ids = []
        request.num_indexed_blocks = 0
        return count

    def reset_prefix_cache(self) -> None:
        """Forget all content. Requests keep the blocks that they hold."""
        self.index.clear()

    def _block_hash(self, request: Request, i: int) -> bytes:
        """The hash of block `i`, whose predecessors' are known; computed once."""
        hashes = request.block_hashes
        if i == len(hashes):
            parent = hashes[-1] if hashes else root_hash(request.cache_salt)
            start = i * self.block_size
            hashes.append(block_hash(parent, request.token_ids[start : start + self.block_size]))
        return hashes[i]
