"""What all weight formats are turned into: files of named tensors, whose shapes are known before any is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file. `read` yields its tensors one by one, under the names of the Hugging Face layout, so that only one at
    a time needs to be in memory; a tensor that is not in `wanted` is not read."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[frozenset[str]], Iterator[tuple[str, torch.Tensor]]]
