"""Weights from safetensors files, single or split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError
from appliance.loading.sharding import checkpoint_paths


def open_files(folder: Path) -> list[CheckpointFile]:
    """The weight files of `folder`; empty if there are none."""
    return [_open(path) for path in checkpoint_paths(folder, "model.safetensors", "model.safetensors.index.json")]


def _open(path: Path) -> CheckpointFile:
    """Reads the header only. The library checks there that the file is complete."""
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path}: damaged or truncated safetensors file ({error}); fetch it again") from error
    return CheckpointFile(path, shapes, partial(_read, path))


def _read(path: Path, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    # The file is mapped: a tensor's pages belong to the page cache, and go with the handle at the end.
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name in wanted:
                yield name, file.get_tensor(name)
