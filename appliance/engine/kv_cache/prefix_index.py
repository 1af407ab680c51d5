"""Blocks found by their content: a hash chain over full blocks of tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

# 256 bits of a cryptographic hash: a hit is never compared token by token, and prompts come from strangers, so two
# different prefixes must not collide even for someone who tries (a birthday attack on 128 bits costs 2**64).
_DIGEST_BYTES = 32


def root_hash(cache_salt: str) -> bytes:
    """The parent of every first block under `cache_salt`: chains of different salts never meet."""
    return blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES, person=b"cache-salt").digest()


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The address of a full block: its tokens and, through `parent`, everything before them. Ids are below 2**32."""
    return blake2b(parent + array("I", token_ids).tobytes(), digest_size=_DIGEST_BYTES).digest()


class PrefixIndex:
    """Which block holds the content with a hash. A hash has one block: the first that offered it."""

    def __init__(self, num_blocks: int) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return self._hash_of[block] is not None

    def find(self, digest: bytes) -> int | None:
        return self._block_of.get(digest)

    def add(self, digest: bytes, block: int) -> bool:
        """False when another block has this content already; `block` then stays out of the index."""
        if digest in self._block_of:
            return False
        self._block_of[digest] = block
        self._hash_of[block] = digest
        return True

    def forget(self, block: int) -> bytes | None:
        """The content of `block` goes away; returns its hash, or None when it was not in the index."""
        digest = self._hash_of[block]
        if digest is not None:
            self._hash_of[block] = None
            del self._block_of[digest]
        return digest

    def forget_content(self, digest: bytes) -> None:
        """Nothing happens when no block has it."""
        block = self._block_of.get(digest)
        if block is not None:
            self.forget(block)

    def clear(self) -> None:
        for block in self._block_of.values():
            self._hash_of[block] = None
        self._block_of.clear()
