"""A tree of layers, lighter than `torch.nn.Module`: on a CPU a decode step is some hundred small operations, and what
a module call and its attribute look-ups cost would show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


def new_weight(*shape: int) -> torch.nn.Parameter:
    """A weight that has a shape but no memory yet; the loader gives it dtype, device and values."""
    return torch.nn.Parameter(torch.empty(*shape, device="meta"), requires_grad=False)


class Layer:
    """A node of the model tree.

    Attributes that are parameters are its weights; attributes that are layers, or lists of layers, its children.
    An attribute's name is also its name in a checkpoint, unless the layer overrides `weight_slots`.
    """

    def weight_slots(self, prefix: str = "") -> Iterator[tuple[str, WeightSlot]]:
        """Every tensor that a checkpoint must have for this layer and those below it: (name, where it goes)."""
        for attribute, value in vars(self).items():
            if isinstance(value, torch.nn.Parameter):
                yield prefix + attribute, WeightSlot(self, attribute)
        for name, child in self.children():
            yield from child.weight_slots(f"{prefix}{name}.")

    def children(self) -> Iterator[tuple[str, Layer]]:
        """The layers directly below, with their names; the items of a list are called `list.0`, `list.1`, …"""
        for attribute, value in vars(self).items():
            if isinstance(value, Layer):
                yield attribute, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{attribute}.{index}", item

    def all_layers(self) -> Iterator[Layer]:
        """This layer and all below it."""
        yield self
        for _, child in self.children():
            yield from child.all_layers()

    def finalize_weights(self) -> None:
        """Called once by the loader when all weights are in place: bring them into the form that runs fastest."""


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """Where one checkpoint tensor goes: a whole parameter, or the rows `start … start + rows - 1` of a merged one."""

    owner: Layer
    attribute: str
    start: int = 0
    rows: int | None = None  # None: all of them

    @property
    def shape(self) -> tuple[int, ...]:
        whole = tuple(getattr(self.owner, self.attribute).shape)
        return whole if self.rows is None else (self.rows, *whole[1:])

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    def materialize(self, dtype: torch.dtype, device: torch.device) -> None:
        """Give the parameter memory, unless another of its slots did."""
        weight = getattr(self.owner, self.attribute)
        if weight.is_meta:
            memory = torch.empty(weight.shape, dtype=dtype, device=device)
            setattr(self.owner, self.attribute, torch.nn.Parameter(memory, requires_grad=False))

    def fill(self, tensor: torch.Tensor) -> None:
        """Copy a checkpoint tensor of `shape` into place, converting its dtype. Every loaded weight passes here."""
        weight = getattr(self.owner, self.attribute).data
        place = weight if self.rows is None else weight.narrow(0, self.start, self.rows)
        place.copy_(tensor)
