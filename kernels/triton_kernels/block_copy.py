"""Blocks of all layers' caches gathered into one buffer, or scattered from it, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WORD_BYTES = 8
_TILE = 1024  # words a program copies: 8 KiB, 64 bytes a thread


@triton.jit
def _copy_blocks_kernel(
    caches,  # pointer to int64: the address of each layer's cache
    blocks,  # pointer to int64: block numbers
    buffer,  # pointer to int64: [count, layers, words]
    words,  # of one block in one layer
    GATHER: tl.constexpr,
    TILE: tl.constexpr,
):
    layer = tl.program_id(1)
    i = tl.program_id(2)
    word = tl.program_id(0) * TILE + tl.arange(0, TILE)
    present = word < words
    block = tl.load(blocks + i)
    cache = tl.load(caches + layer).to(tl.pointer_type(tl.int64))
    in_cache = tl.multiple_of(cache, 16) + block * words + word
    in_buffer = buffer + (i.to(tl.int64) * tl.num_programs(1) + layer) * words + word
    if GATHER:
        tl.store(in_buffer, tl.load(in_cache, mask=present), mask=present)
    else:
        tl.store(in_cache, tl.load(in_buffer, mask=present), mask=present)


def gather_blocks(caches: torch.Tensor, blocks: torch.Tensor, buffer: torch.Tensor) -> None:
    """Copy blocks out of every layer's cache.

    caches [layers] int64: the address of each layer's cache, [num_blocks, words] of 8 bytes, contiguous, on the device
    blocks [count] int64, count at most 65,535
    buffer [at least count, layers, words] int64, contiguous: entry i becomes block `blocks[i]` of all layers
    """
    _launch(caches, blocks, buffer, gather=True)


def scatter_blocks(caches: torch.Tensor, blocks: torch.Tensor, buffer: torch.Tensor) -> None:
    """The reverse of `gather_blocks`: block `blocks[i]` of all layers becomes entry i of `buffer`. No block twice."""
    _launch(caches, blocks, buffer, gather=False)


def _launch(caches: torch.Tensor, blocks: torch.Tensor, buffer: torch.Tensor, *, gather: bool) -> None:
    layers, words = buffer.shape[1:]
    if not len(blocks):
        return
    grid = (triton.cdiv(words, _TILE), layers, len(blocks))
    _copy_blocks_kernel[grid](caches, blocks, buffer, words, GATHER=gather, TILE=_TILE)
