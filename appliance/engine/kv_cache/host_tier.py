"""The second tier of the prefix cache: which slot of host memory has the content with which hash, and what to copy."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class CopyPlan:
    """What a step has to copy before it runs: all of `copies_out`, then all of `copies_in`.

    No destination appears twice, so the copies of one list may run in any order and at the same time.
    """

    copies_out: list[tuple[int, int]] = field(default_factory=list)  # (device block, host slot)
    copies_in: list[tuple[int, int]] = field(default_factory=list)  # (host slot, device block)


class HostTier:
    """`num_slots` slots, each of the size of a device block. Every operation on one slot is O(1).

    A block is saved when the device is about to overwrite it (write-back): whatever is never evicted costs nothing, and
    the copy is ordered by its place in the step that overwrites the block; nobody has to wait for an earlier one. What
    is copied back stays here as well, so evicting it again costs nothing.

    When a slot is needed, the content goes that was not saved or used for the longest time, unless somebody holds it: a
    preempted request that comes back for it, or a copy that the next step makes.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"the host tier needs at least one slot, got {num_slots}")
        self.num_slots = num_slots
        self._slot_of: dict[bytes, int] = {}
        self._digest_of: list[bytes | None] = [None] * num_slots
        self._num_holders = [0] * num_slots
        self._empty = list(range(num_slots - 1, -1, -1))  # neither content nor holders; a stack, low slots on top
        self._evictable: OrderedDict[int, None] = OrderedDict()  # content and no holders, the least recently used first
        self._plan = CopyPlan()
        self._planned: list[int] = []  # slots held until the plan is handed over, one entry a copy

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._slot_of

    @property
    def usage(self) -> float:
        """Slots with content over all slots, 0 to 1."""
        return len(self._slot_of) / self.num_slots

    def slot_of(self, digest: bytes) -> int:
        """The slot with this content, which is here."""
        return self._slot_of[digest]

    def save(self, digest: bytes, block: int) -> int | None:
        """Keep the content of device block `block`: plans a copy unless it is here already.

        Returns its slot, or None when all slots are held, in which case the content is lost.
        """
        slot = self._slot_of.get(digest)
        if slot is not None:
            if slot in self._evictable:
                self._evictable.move_to_end(slot)
            return slot
        if self._empty:
            slot = self._empty.pop()
        elif self._evictable:
            slot, _ = self._evictable.popitem(last=False)
            self._drop_content(slot)
        else:
            return None
        self._slot_of[digest] = slot
        self._digest_of[slot] = digest
        self._num_holders[slot] = 1
        self._planned.append(slot)
        self._plan.copies_out.append((block, slot))
        return slot

    def load(self, slot: int, block: int) -> None:
        """Plan to copy `slot`, which the caller holds, into device block `block`."""
        self.hold(slot)
        self._planned.append(slot)
        self._plan.copies_in.append((slot, block))

    def hold(self, slot: int) -> None:
        """Nothing else is put into `slot` until a `release` follows. `slot` has content."""
        if self._num_holders[slot] == 0:
            del self._evictable[slot]
        self._num_holders[slot] += 1

    def release(self, slot: int) -> None:
        if self._num_holders[slot] == 0:
            raise ValueError(f"host slot {slot} is released, but nobody holds it")
        self._num_holders[slot] -= 1
        if self._num_holders[slot]:
            return
        if self._digest_of[slot] is None:
            self._empty.append(slot)
        else:
            self._evictable[slot] = None

    def forget(self, digest: bytes) -> None:
        """The content with this hash is not to be found any more; nothing happens when it is not here."""
        slot = self._slot_of.get(digest)
        if slot is None:
            return
        self._drop_content(slot)
        if self._num_holders[slot] == 0:
            del self._evictable[slot]
            self._empty.append(slot)

    def withdraw(self, copies_out: Iterable[tuple[int, int]]) -> None:
        """Copies that may never have been made, or copied what was never computed: their slots hold nothing.

        That goes for planned copies that no step has taken over yet, too.
        """
        for _, slot in (*copies_out, *self._plan.copies_out):
            digest = self._digest_of[slot]
            if digest is not None:
                self.forget(digest)

    def clear(self) -> None:
        """Forget all content. Slots stay held by whoever holds them."""
        for digest in list(self._slot_of):
            self.forget(digest)

    def take_plan(self) -> CopyPlan:
        """What was planned since the last call. The step that gets it must be the next one that runs."""
        plan = self._plan
        if self._planned:
            for slot in self._planned:
                self.release(slot)
            self._planned = []
            self._plan = CopyPlan()
        return plan

    def _drop_content(self, slot: int) -> None:
        digest = self._digest_of[slot]
        if digest is not None:
            self._digest_of[slot] = None
            del self._slot_of[digest]
