"""The host side of the two-tier prefix cache: copies blocks between the layers' caches and host memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

# Device memory between a block's place in the caches and the copy engine, a buffer. A step that copies more than two
# buffers waits for the bus; 64 MiB are more than what 256 decoding requests evict in a step.
STAGING_BYTES = 64 * 2**20
_BUFFERS = 2  # a direction, so that one is filled while the other is emptied

# Lists of block numbers, one a filled or emptied buffer, that may be on their way to the device before the host waits.
# By then it is gigabytes ahead of the bus.
_LISTS = 64

# Pinned memory comes in powers of two; pieces of this size waste little of it.
_PINNED_PIECE_BYTES = 256 * 2**20


class HostTier(Protocol):
    """Host memory for `num_host_blocks` blocks. A block is what the scheduler allocates, in all layers.

    A step makes its copies in this order, before it writes anything: `copy_out`, then `copy_in`. On a GPU neither
    holds the host up, and the copies are ordered against the current stream: what runs on it later sees them done,
    and what was put on it earlier is what they see. No destination appears twice in a call.
    """

    def copy_out(self, pairs: Sequence[tuple[int, int]]) -> None:
        """`pairs`: (device block, host slot)."""
        ...

    def copy_in(self, pairs: Sequence[tuple[int, int]]) -> None:
        """`pairs`: (host slot, device block)."""
        ...


def make_host_tier(
    kv_caches: Sequence[torch.Tensor], num_host_blocks: int, *, kernel_blocks_per_block: int = 1
) -> HostTier:
    """kv_caches: one contiguous tensor a layer, [num_kernel_blocks, …]. Block `b` is `kernel_blocks_per_block` kernel
    blocks of each, from `b * kernel_blocks_per_block` on."""
    if kv_caches[0].is_cuda:
        return CudaHostTier(kv_caches, num_host_blocks, kernel_blocks_per_block=kernel_blocks_per_block)
    return CpuHostTier(kv_caches, num_host_blocks, kernel_blocks_per_block=kernel_blocks_per_block)


def device_bytes(bytes_per_block: int) -> int:
    """What `CudaHostTier` takes of the GPU's memory; `bytes_per_block` over all layers."""
    return 2 * _BUFFERS * _blocks_per_buffer(bytes_per_block) * bytes_per_block


class CpuHostTier:
    """For caches that are in host memory already: of little use, but the same engine above it."""

    def __init__(
        self, kv_caches: Sequence[torch.Tensor], num_host_blocks: int, *, kernel_blocks_per_block: int
    ) -> None:
        self._caches = [cache.view(torch.uint8).view(len(cache) // kernel_blocks_per_block, -1) for cache in kv_caches]
        # Not zeroed: the kernel provides pages when they are first written.
        self._slots = [torch.empty(num_host_blocks, cache.shape[1], dtype=torch.uint8) for cache in self._caches]

    def copy_out(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            blocks, slots = torch.tensor(pairs).unbind(1)
            for cache, host in zip(self._caches, self._slots, strict=True):
                host[slots] = cache[blocks]

    def copy_in(self, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            slots, blocks = torch.tensor(pairs).unbind(1)
            for cache, host in zip(self._caches, self._slots, strict=True):
                cache[blocks] = host[slots]


@dataclass(slots=True)
class _Buffer:
    entries: torch.Tensor  # [blocks, layers, words] int64
    free: torch.cuda.Event  # recorded when its last use was put on a stream


@dataclass(slots=True)
class _BlockList:
    numbers: torch.Tensor  # [blocks] int64, pinned
    sent: torch.cuda.Event


@dataclass(slots=True)
class _Saving:
    """Copies to the host that may be under way."""

    slots: frozenset[int]
    done: torch.cuda.Event


class CudaHostTier:
    """Blocks pass through staging buffers on the device: one launch gathers or scatters the blocks of all layers, and
    the copy engines move whole blocks between buffer and pinned memory, on a stream for each direction.

    Eviction costs the step only the gathering; the bus works beside it. Copies in need nothing of the steps before, so
    the bus moves them while the last step still runs, if the host is ahead of the device.
    """

    def __init__(
        self,
        kv_caches: Sequence[torch.Tensor],
        num_host_blocks: int,
        *,
        kernel_blocks_per_block: int,
        staging_bytes: int = STAGING_BYTES,
    ) -> None:
        # Triton chooses between compiler and interpreter when it is imported; without a GPU nobody needs it here.
        from appliance_kernels.triton_kernels.block_copy import WORD_BYTES, gather_blocks, scatter_blocks

        layer_bytes = kv_caches[0][0].nbytes * kernel_blocks_per_block
        if layer_bytes % (2 * WORD_BYTES) or any(cache.data_ptr() % 16 for cache in kv_caches):
            raise ValueError(f"blocks of {layer_bytes} bytes a layer are not copied in steps of 16 bytes")
        if not all(cache.is_contiguous() and cache[0].nbytes == kv_caches[0][0].nbytes for cache in kv_caches):
            raise ValueError("the layers' caches must be contiguous and have blocks of one size")
        self._gather, self._scatter = gather_blocks, scatter_blocks
        self._kv_caches = list(kv_caches)  # whose addresses the kernels are given
        device = kv_caches[0].device
        self._addresses = torch.tensor([cache.data_ptr() for cache in kv_caches], dtype=torch.int64, device=device)
        shape = (len(kv_caches), layer_bytes // WORD_BYTES)

        block_bytes = layer_bytes * len(kv_caches)
        self._slots_per_piece = max(1, _PINNED_PIECE_BYTES // block_bytes)
        self._pieces = [
            torch.empty(min(self._slots_per_piece, num_host_blocks - first), *shape, dtype=torch.int64, pin_memory=True)
            for first in range(0, num_host_blocks, self._slots_per_piece)
        ]

        self._blocks_per_buffer = _blocks_per_buffer(block_bytes, staging_bytes)
        self._out_buffers, self._in_buffers = (
            deque(
                _Buffer(
                    torch.empty(self._blocks_per_buffer, *shape, dtype=torch.int64, device=device), torch.cuda.Event()
                )
                for _ in range(_BUFFERS)
            )
            for _ in range(2)
        )
        lists = torch.empty(_LISTS, self._blocks_per_buffer, dtype=torch.int64, pin_memory=True)
        self._lists = deque(_BlockList(numbers, torch.cuda.Event()) for numbers in lists)
        self._out_stream = torch.cuda.Stream(device)
        self._in_stream = torch.cuda.Stream(device)
        self._saving: deque[_Saving] = deque()
        self._device = device
        self._compile()

    def copy_out(self, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        compute = torch.cuda.current_stream(self._device)
        self._out_stream.wait_stream(self._in_stream)  # a slot may be overwritten that is being read
        for start in range(0, len(pairs), self._blocks_per_buffer):
            blocks, slots = zip(*pairs[start : start + self._blocks_per_buffer], strict=True)
            buffer = _next(self._out_buffers)
            compute.wait_event(buffer.free)
            self._gather(self._addresses, self._on_device(blocks), buffer.entries)
            self._out_stream.wait_stream(compute)
            with torch.cuda.stream(self._out_stream):
                for i, host in self._runs(slots):
                    host.copy_(buffer.entries[i : i + len(host)], non_blocking=True)
                buffer.free.record()
        done = torch.cuda.Event()
        done.record(self._out_stream)
        self._saving.append(_Saving(frozenset(slot for _, slot in pairs), done))

    def copy_in(self, pairs: Sequence[tuple[int, int]]) -> None:
        if not pairs:
            return
        compute = torch.cuda.current_stream(self._device)
        self._wait_until_saved({slot for slot, _ in pairs})
        for start in range(0, len(pairs), self._blocks_per_buffer):
            slots, blocks = zip(*pairs[start : start + self._blocks_per_buffer], strict=True)
            buffer = _next(self._in_buffers)
            self._in_stream.wait_event(buffer.free)
            with torch.cuda.stream(self._in_stream):
                for i, host in self._runs(slots):
                    buffer.entries[i : i + len(host)].copy_(host, non_blocking=True)
            compute.wait_stream(self._in_stream)
            self._scatter(self._addresses, self._on_device(blocks), buffer.entries)
            buffer.free.record(compute)

    def _compile(self) -> None:
        """Both kernels, now instead of in the middle of serving: block 0 goes out, and back where it came from."""
        blocks, entries = self._on_device([0]), self._out_buffers[0].entries
        self._gather(self._addresses, blocks, entries)
        self._scatter(self._addresses, blocks, entries)

    def _wait_until_saved(self, slots: set[int]) -> None:
        """Make copies in wait for the copies out that wrote their slots, and for no others."""
        while self._saving and self._saving[0].done.query():
            self._saving.popleft()
        for saving in self._saving:
            if not slots.isdisjoint(saving.slots):
                self._in_stream.wait_event(saving.done)

    def _runs(self, slots: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """Neighbours in `slots` that are neighbours in pinned memory, too: where each run begins, and its memory."""
        start = 0
        for i in range(1, len(slots) + 1):
            if i < len(slots) and slots[i] == slots[i - 1] + 1 and slots[i] % self._slots_per_piece:
                continue
            piece, first = divmod(slots[start], self._slots_per_piece)
            yield start, self._pieces[piece][first : first + i - start]
            start = i

    def _on_device(self, blocks: Sequence[int]) -> torch.Tensor:
        """[blocks] int64, on the current stream."""
        self._lists.rotate()
        own = self._lists[0]
        own.sent.synchronize()
        numbers = own.numbers[: len(blocks)]
        numbers.copy_(torch.tensor(blocks))
        on_device = numbers.to(self._device, non_blocking=True)
        own.sent.record()
        return on_device


def _next(buffers: deque[_Buffer]) -> _Buffer:
    buffers.rotate()
    return buffers[0]


def _blocks_per_buffer(bytes_per_block: int, staging_bytes: int = STAGING_BYTES) -> int:
    return max(1, staging_bytes // bytes_per_block)
