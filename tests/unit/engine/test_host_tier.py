"""Slots of host memory: what is found in one is what was saved there, and nobody overwrites what somebody needs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.engine.kv_cache.host_tier import HostTier
from appliance.runner.host_tier import CpuHostTier

A, B, C, D = b"a", b"b", b"c", b"d"


def test_a_saved_block_is_found_in_the_slot_that_it_is_copied_to() -> None:
    tier = HostTier(2)
    slot = tier.save(A, block=7)
    assert tier.take_plan().copies_out == [(7, slot)]
    assert tier.slot_of(A) == slot
    assert B not in tier


def test_content_that_is_here_already_is_not_copied_again() -> None:
    tier = HostTier(2)
    slot = tier.save(A, block=7)
    tier.take_plan()
    assert tier.save(A, block=3) == slot
    assert tier.take_plan().copies_out == []


def test_the_content_that_was_saved_longest_ago_makes_room() -> None:
    tier = HostTier(2)
    for digest in (A, B, C):
        tier.save(digest, block=0)
        tier.take_plan()
    assert A not in tier
    assert B in tier
    assert C in tier


def test_content_that_was_loaded_or_offered_again_makes_room_later() -> None:
    for use in ("load", "save"):
        tier = HostTier(2)
        tier.save(A, block=0)
        tier.save(B, block=1)
        tier.take_plan()
        if use == "load":
            tier.load(tier.slot_of(A), block=5)
            assert tier.take_plan().copies_in == [(tier.slot_of(A), 5)]
        else:
            tier.save(A, block=0)
        tier.save(C, block=2)
        assert A in tier
        assert B not in tier


def test_slots_of_copies_that_no_step_has_made_yet_are_not_used_again() -> None:
    tier = HostTier(2)
    tier.save(A, block=0)
    tier.take_plan()
    tier.load(tier.slot_of(A), block=5)
    tier.save(B, block=1)
    assert tier.save(C, block=2) is None
    assert C not in tier
    tier.take_plan()
    assert tier.save(C, block=2) is not None


def test_a_held_slot_keeps_its_content_until_it_is_released() -> None:
    tier = HostTier(1)
    slot = tier.save(A, block=0)
    assert slot is not None
    tier.take_plan()
    tier.hold(slot)
    tier.hold(slot)
    tier.release(slot)
    assert tier.save(B, block=1) is None
    tier.release(slot)
    assert tier.save(B, block=1) == slot
    assert A not in tier


def test_a_slot_released_by_nobody_is_an_error() -> None:
    with pytest.raises(ValueError, match="slot 0 is released"):
        HostTier(1).release(0)


def test_forgotten_content_leaves_its_slot_to_its_holder_and_then_to_anybody() -> None:
    tier = HostTier(1)
    slot = tier.save(A, block=0)
    assert slot is not None
    tier.forget(A)
    assert A not in tier
    assert tier.save(B, block=1) is None  # the copy of A into it is still to be made
    assert tier.take_plan().copies_out == [(0, slot)]
    assert tier.save(B, block=1) == slot


def test_copies_that_were_not_made_or_copied_nothing_good_are_withdrawn() -> None:
    tier = HostTier(3)
    tier.save(A, block=0)
    tier.take_plan()
    tier.save(B, block=1)
    failed = tier.take_plan()
    tier.save(C, block=2)  # planned after the step that fails, by no step yet
    tier.withdraw(failed.copies_out)
    assert A in tier
    assert B not in tier
    assert C not in tier


def test_usage_counts_slots_with_content() -> None:
    tier = HostTier(4)
    assert tier.usage == 0
    tier.save(A, block=0)
    assert tier.usage == pytest.approx(0.25)
    tier.clear()
    assert tier.usage == 0
    assert A not in tier


NUM_BLOCKS, NUM_SLOTS = 4, 3
digests = st.integers(1, 8).map(lambda number: bytes([number]))


class HostTierMachine(RuleBasedStateMachine):
    """Content travels as real tensors: every element of a block with the hash `n` is `n`, in two layers."""

    @initialize()
    def start(self) -> None:
        self.tier = HostTier(NUM_SLOTS)
        self.caches = [torch.zeros(2 * NUM_BLOCKS, 2, 1, 4, 3) for _ in range(2)]  # two kernel blocks each
        self.memory = CpuHostTier(self.caches, NUM_SLOTS, kernel_blocks_per_block=2)
        self.holding: list[int] = []
        self.read: dict[int, int] = {}  # device block -> what the plan is to copy in
        self.unread: set[int] = set(range(NUM_BLOCKS))  # device blocks that the plan does not read

    @precondition(lambda self: self.unread - self.read.keys())
    @rule(digest=digests)
    def save(self, digest: bytes) -> None:
        block = min(self.unread - self.read.keys())
        fresh = digest not in self.tier
        if fresh:
            self.unread.discard(block)
            self.fill(block, digest[0])  # computed by a step that ran before
        slot = self.tier.save(digest, block)
        assert (slot is None) == (digest not in self.tier)
        if slot is None:
            assert len(set(self.holding) | set(self.tier._planned)) == NUM_SLOTS

    @rule(digest=digests)
    def load(self, digest: bytes) -> None:
        targets = set(range(NUM_BLOCKS)) - self.read.keys()
        if digest in self.tier and targets:
            block = max(targets)
            self.tier.load(self.tier.slot_of(digest), block)
            self.read[block] = digest[0]

    @rule(digest=digests)
    def hold(self, digest: bytes) -> None:
        if digest in self.tier:
            self.tier.hold(self.tier.slot_of(digest))
            self.holding.append(self.tier.slot_of(digest))

    @precondition(lambda self: self.holding)
    @rule()
    def release(self) -> None:
        self.tier.release(self.holding.pop())

    @rule(digest=digests)
    def forget(self, digest: bytes) -> None:
        self.tier.forget(digest)

    @rule()
    def clear(self) -> None:
        self.tier.clear()

    @rule()
    def step(self) -> None:
        plan = self.tier.take_plan()
        self.memory.copy_out(plan.copies_out)
        self.memory.copy_in(plan.copies_in)
        for block, number in self.read.items():
            assert all((cache[2 * block : 2 * block + 2] == number).all() for cache in self.caches)
        self.read = {}
        self.unread = set(range(NUM_BLOCKS))

    @rule()
    def step_that_fails(self) -> None:
        plan = self.tier.take_plan()
        for _, slot in plan.copies_out:
            for host in self.memory._slots:
                host[slot] = 255
        self.tier.withdraw(plan.copies_out)
        self.read = {}
        self.unread = set(range(NUM_BLOCKS))

    @invariant()
    def what_is_found_is_there_or_on_its_way(self) -> None:
        on_its_way = {slot for _, slot in self.tier._plan.copies_out}
        probe = [torch.zeros_like(cache) for cache in self.caches]
        memory = CpuHostTier(probe, NUM_SLOTS, kernel_blocks_per_block=2)
        memory._slots = self.memory._slots
        for number in range(1, 9):
            digest = bytes([number])
            if digest in self.tier and self.tier.slot_of(digest) not in on_its_way:
                memory.copy_in([(self.tier.slot_of(digest), 0)])
                assert all((cache[:2] == number).all() for cache in probe)

    @invariant()
    def every_slot_is_in_one_state(self) -> None:
        tier = self.tier
        held = Counter(self.holding) + Counter(tier._planned)
        assert tier._num_holders == [held[slot] for slot in range(NUM_SLOTS)]
        with_content = set(tier._slot_of.values())
        assert len(with_content) == len(tier) <= NUM_SLOTS
        assert sorted([*tier._empty, *tier._evictable, *held]) == list(range(NUM_SLOTS))
        assert set(tier._evictable) == with_content - held.keys()

    def fill(self, block: int, number: int) -> None:
        for cache in self.caches:
            cache[2 * block : 2 * block + 2] = number


TestHostTierMachine = HostTierMachine.TestCase
TestHostTierMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
