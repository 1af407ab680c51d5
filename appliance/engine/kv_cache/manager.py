"""Gives blocks to requests and takes them back; keeps full blocks findable for those that come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.engine.kv_cache.block_pool import BlockPool
from appliance.engine.kv_cache.host_tier import CopyPlan, HostTier
from appliance.engine.kv_cache.prefix_index import PrefixIndex, block_hash, root_hash
from appliance.engine.request import Request, RequestError


@dataclass(slots=True, frozen=True)
class CachedPrefix:
    """Blocks that already hold the beginning of a request. Valid until the next allocation."""

    block_ids: list[int | None]  # None: it is in the host tier
    num_free: int  # taking the prefix takes so many blocks off the free list: those held by nobody, and one for a None

    @property
    def num_on_host(self) -> int:
        return self.block_ids.count(None)


class KVCacheManager:
    """Allocation in units of `block_size` tokens (which may be a multiple of what the attention kernel pages by).

    A full block enters the prefix index when its filling is *scheduled*. The runner writes a layer's keys and values of
    the whole step before that layer's attention reads any, so a request admitted later in the same step may already
    attend to them, and requests that arrive together compute a common prefix once. Whoever schedules has to `withdraw`
    what was promised by a step that failed.

    With a host tier, the content of a block that is reused goes to the host, and comes back when a request begins with
    it. Both are copies that the step makes before it writes anything (`take_copies`). Steps run in order on the device,
    so a copy sees what every earlier step wrote, and a block promised in one step may be saved by the next.
    """

    def __init__(
        self, num_blocks: int, block_size: int, enable_prefix_caching: bool = True, num_host_blocks: int = 0
    ) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        if num_host_blocks and not enable_prefix_caching:
            raise ValueError("host blocks are found through the prefix cache, which is off")
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(num_blocks)
        self._last_looked_up: Request | None = None
        self.host = HostTier(num_host_blocks) if num_host_blocks else None
        self.num_loaded_blocks = 0  # from the host, ever
        self._swapped: dict[str, list[int]] = {}  # request id -> host slots held until it comes back

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

    @property
    def host_usage(self) -> float:
        """Host slots with content over all slots, 0 to 1; 0 without a host tier."""
        return 0.0 if self.host is None else self.host.usage

    @property
    def num_swapped(self) -> int:
        """Preempted requests that the host tier keeps blocks for."""
        return len(self._swapped)

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
        blocks: list[int | None] = []
        num_free = 0
        if self.enable_prefix_caching:
            self._hash_like_the_last(request)
            for i in range((request.num_tokens - 1) // self.block_size):
                digest = self._block_hash(request, i)
                block = self.index.find(digest)
                if block is None and (self.host is None or digest not in self.host):
                    break
                blocks.append(block)
                num_free += block is None or self.pool.ref_count(block) == 0
        return CachedPrefix(blocks, num_free)

    def take_prefix(self, request: Request, prefix: CachedPrefix) -> list[int]:
        """Make `prefix` the first blocks of `request`, which holds none.

        Returns the blocks promised: the step that takes the next copies fills them from the host.
        """
        for block in prefix.block_ids:
            if block is not None:
                self.pool.share(block)
        promised = self._load(request, prefix) if prefix.num_on_host else []
        filled = iter(promised)
        request.block_ids = [next(filled) if block is None else block for block in prefix.block_ids]
        request.num_indexed_blocks = len(prefix.block_ids)
        self.drop_swapped(request)
        return promised

    def grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """Give `request` blocks for its first `num_tokens` tokens; the new ones, or None when too few are free."""
        count = self.blocks_for(num_tokens) - len(request.block_ids)
        if count <= 0:
            return []
        if count > self.pool.num_free:
            return None
        blocks = self._take(count)
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

    def withdraw(self, blocks: Sequence[int], copies_out: Sequence[tuple[int, int]] = ()) -> None:
        """What a failed step promised, and the copies it was to make: nobody is to find their content any more."""
        for block in blocks:
            self.index.forget(block)
        if self.host is not None:
            self.host.withdraw(copies_out)

    def withdraw_request(self, request: Request) -> None:
        """Nobody is to find the content of `request` any more, in either tier, whoever computed it."""
        for digest in request.block_hashes:
            self.index.forget_content(digest)
            if self.host is not None:
                self.host.forget(digest)

    def swap_out(self, request: Request) -> None:
        """Copy the full blocks of `request`, about to be preempted, to the host and keep them there for it.

        What the host has no room for is left to `free`, as without this call.
        """
        if self.host is None:
            return
        slots = []
        for digest, block in zip(request.block_hashes[: request.num_indexed_blocks], request.block_ids, strict=False):
            slot = self.host.save(digest, block)
            if slot is None:
                break
            self.host.hold(slot)
            slots.append(slot)
        if slots:
            self._swapped[request.request_id] = slots

    def drop_swapped(self, request: Request) -> None:
        """The host need not keep anything for `request` any more: it is back, or has ended."""
        for slot in self._swapped.pop(request.request_id, ()):
            assert self.host is not None
            self.host.release(slot)

    def take_copies(self) -> CopyPlan:
        """The copies that the next step has to make before it writes anything."""
        return CopyPlan() if self.host is None else self.host.take_plan()

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
        """Forget all content in both tiers. Requests keep the blocks that they hold."""
        self.index.clear()
        if self.host is not None:
            for slots in self._swapped.values():
                for slot in slots:
                    self.host.release(slot)
            self._swapped.clear()
            self.host.clear()

    def _take(self, count: int) -> list[int]:
        """`count` free blocks; what they held goes to the host."""
        blocks = self.pool.take(count)
        for block in blocks:
            digest = self.index.forget(block)
            if digest is not None and self.host is not None:
                self.host.save(digest, block)
        return blocks

    def _load(self, request: Request, prefix: CachedPrefix) -> list[int]:
        """Fresh blocks for what `prefix` has on the host, in order, to be filled from there."""
        assert self.host is not None
        digests = [request.block_hashes[i] for i, block in enumerate(prefix.block_ids) if block is None]
        slots = [self.host.slot_of(digest) for digest in digests]
        for slot in slots:  # before any of them could be given to what the fresh blocks held
            self.host.hold(slot)
        blocks = self._take(len(slots))
        for digest, slot, block in zip(digests, slots, blocks, strict=True):
            self.host.load(slot, block)
            self.host.release(slot)
            self.index.add(digest, block)
        self.num_loaded_blocks += len(blocks)
        return blocks

    def _hash_like_the_last(self, request: Request) -> None:
        """Take the hashes of what `request` has in common with the request before it, if it has none yet.

        Comparing long prompts is a hundred times faster than hashing them, and those that share a prefix come together.
        """
        last, self._last_looked_up = self._last_looked_up, request
        if request.block_hashes or last is None or last.cache_salt != request.cache_salt:
            return
        common, size = 0, self.block_size
        step = 1 << max(len(last.block_hashes).bit_length() - 1, 0)
        while step and last.block_hashes:  # the greatest number of blocks that are the same, by bisection
            end = (common + step) * size
            if common + step <= len(last.block_hashes) and end <= request.num_tokens:
                start = common * size
                if last.token_ids[start:end] == request.token_ids[start:end]:
                    common += step
            step >>= 1
        request.block_hashes = last.block_hashes[:common]

    def _block_hash(self, request: Request, i: int) -> bytes:
        """The hash of block `i`, whose predecessors' are known; computed once."""
        hashes = request.block_hashes
        if i == len(hashes):
            parent = hashes[-1] if hashes else root_hash(request.cache_salt)
            start = i * self.block_size
            hashes.append(block_hash(parent, request.token_ids[start : start + self.block_size]))
        return hashes[i]
