"""Blocks go to host memory and come back as they were, in the order in which steps want it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from appliance.engine.memory.footprint import swap_buffer_bytes
from appliance.runner.host_tier import CudaHostTier, HostTier, device_bytes, make_host_tier

LAYERS, RATIO, BLOCKS, SLOTS = 3, 2, 24, 40
MIB = 2**20


def caches_on(device: str, dtype: torch.dtype = torch.bfloat16, kernel_block_bytes: int = 4096) -> list[torch.Tensor]:
    """Of `BLOCKS` blocks, each `RATIO` kernel blocks [2, 2, 16, head_dim], filled with noise."""
    head_dim = kernel_block_bytes // (2 * 2 * 16) // dtype.itemsize
    shape = (BLOCKS * RATIO, 2, 2, 16, head_dim)
    return [torch.randn(shape, device=device).to(dtype) for _ in range(LAYERS)]


def bits(caches: Sequence[torch.Tensor]) -> torch.Tensor:
    """[BLOCKS, LAYERS, bytes]"""
    return torch.stack([cache.view(torch.uint8).view(BLOCKS, -1) for cache in caches], 1)


def swap_everything(tier: HostTier, caches: Sequence[torch.Tensor]) -> None:
    """All blocks out to slots in no order, overwritten, and back into other blocks."""
    before = bits(caches).clone()
    rng = random.Random(0)
    slots, targets = rng.sample(range(SLOTS), BLOCKS), rng.sample(range(BLOCKS), BLOCKS)
    tier.copy_out(list(zip(range(BLOCKS), slots, strict=True)))
    for cache in caches:
        cache.view(torch.uint8).zero_()
    tier.copy_in(list(zip(slots, targets, strict=True)))
    assert torch.equal(bits(caches)[targets], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_blocks_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    caches = caches_on("cpu", dtype)
    swap_everything(make_host_tier(caches, SLOTS, kernel_blocks_per_block=RATIO), caches)


def test_copies_touch_nothing_else() -> None:
    caches = caches_on("cpu")
    tier = make_host_tier(caches, SLOTS, kernel_blocks_per_block=RATIO)
    expected = bits(caches).clone()
    tier.copy_out([])
    tier.copy_in([])
    tier.copy_out([(3, 7), (4, 0)])
    tier.copy_in([(7, 20)])
    expected[20] = expected[3]
    assert torch.equal(bits(caches), expected)


def test_a_copy_in_sees_what_the_same_step_copies_out() -> None:
    caches = caches_on("cpu")
    tier = make_host_tier(caches, SLOTS, kernel_blocks_per_block=RATIO)
    before = bits(caches).clone()
    tier.copy_out([(1, 5)])
    tier.copy_in([(5, 2)])
    assert torch.equal(bits(caches)[2], before[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("staging_blocks", [1, 5, 100])
def test_blocks_come_back_bit_for_bit_from_pinned_memory(dtype: torch.dtype, staging_blocks: int) -> None:
    caches = caches_on("cuda", dtype)
    staging_bytes = staging_blocks * bits(caches)[0].nbytes
    swap_everything(CudaHostTier(caches, SLOTS, kernel_blocks_per_block=RATIO, staging_bytes=staging_bytes), caches)


@pytest.mark.gpu
def test_blocks_may_fill_several_pieces_of_pinned_memory() -> None:
    caches = caches_on("cuda", kernel_block_bytes=2 * MIB)  # 12 MiB a block over all layers, 480 MiB in all
    tier = make_host_tier(caches, SLOTS, kernel_blocks_per_block=RATIO)
    assert isinstance(tier, CudaHostTier)
    assert len(tier._pieces) > 1
    assert all(piece.is_pinned() for piece in tier._pieces)
    swap_everything(tier, caches)


@pytest.mark.gpu
def test_making_the_tier_changes_no_block_and_takes_the_memory_that_was_announced() -> None:
    caches = caches_on("cuda")
    before = bits(caches).clone()
    allocated = torch.cuda.memory_allocated()
    tier = CudaHostTier(caches, SLOTS, kernel_blocks_per_block=RATIO)
    taken = torch.cuda.memory_allocated() - allocated
    assert torch.equal(bits(caches), before)
    assert 0 <= taken - device_bytes(before[0].nbytes) < MIB
    del tier


@pytest.mark.gpu
def test_copies_are_ordered_against_the_steps_around_them_without_the_host() -> None:
    """Many steps are queued behind a kernel that holds the device up, so nothing is in order by accident."""
    caches = caches_on("cuda")
    tier = CudaHostTier(caches, SLOTS, kernel_blocks_per_block=RATIO, staging_bytes=2 * bits(caches)[0].nbytes)
    blocks = [cache.view(torch.uint8).view(BLOCKS, -1) for cache in caches]
    on_device, on_host = [-1] * BLOCKS, [-1] * SLOTS
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    begun = torch.cuda.Event()
    begun.record()
    rng = random.Random(1)
    for step in range(100):
        slots = rng.sample(range(SLOTS), 6)
        out = list(zip(rng.sample(range(BLOCKS), 6), slots, strict=True))
        tier.copy_out(out)
        for block, slot in out:
            on_host[slot] = on_device[block]
        back = list(zip(rng.sample(range(SLOTS), 5), rng.sample(range(BLOCKS), 5), strict=True))
        tier.copy_in(back)
        for slot, block in back:
            on_device[block] = on_host[slot]
        if step == 0:
            assert not begun.query(), "a copy waited for the device"
        for block in rng.sample(range(BLOCKS), 8):
            on_device[block] = rng.randrange(256)
            for layer in blocks:
                layer[block].fill_(on_device[block])
        if step % 10 == 0:
            torch.cuda._sleep(1_000_000)
    tier.copy_out([(block, block) for block in range(BLOCKS)])
    tier.copy_in([(block, block) for block in range(BLOCKS)])
    for block, number in enumerate(on_device):
        if number >= 0:
            assert all((layer[block] == number).all() for layer in blocks)


@pytest.mark.parametrize("bytes_per_block", [4096, 3 * MIB, 100 * MIB])
def test_the_memory_plan_knows_what_the_tier_takes(bytes_per_block: int) -> None:
    assert device_bytes(bytes_per_block) == swap_buffer_bytes(bytes_per_block)
