"""Weights from PyTorch's own files, single or split."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError
from appliance.loading.sharding import checkpoint_paths


def find(folder: Path) -> list[Path]:
    return checkpoint_paths(folder, "pytorch_model.bin", "pytorch_model.bin.index.json")


def open_files(folder: Path) -> list[CheckpointFile]:
    """The weight files of `folder`; empty if there are none."""
    return [_open(path) for path in find(folder)]


def _open(path: Path) -> CheckpointFile:
    shapes = {name: tuple(tensor.shape) for name, tensor in load_tensors(path).items()}
    return CheckpointFile(path, shapes, partial(_read, path))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The file's tensors, mapped rather than read. Only tensors are unpickled, never code."""
    try:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            tensors = torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{path}: the file holds more than tensors, or is damaged, and is not unpickled for safety; convert the "
            f"model to safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ModelLoadError(f"{path}: damaged or truncated PyTorch file ({error}); fetch it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ModelLoadError(f"{path}: not a plain dictionary of tensors; convert the model to safetensors")
    return tensors


def _read(path: Path, wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in load_tensors(path).items():
        if name in wanted:
            yield name, tensor
