"""A copy of PyTorch files as one NumPy file a tensor, made once and mapped at each later start."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from appliance.loading import pt_format
from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError

CACHE = "numpy-cache"  # folder beside the weights
INDEX = "index.json"


def open_files(folder: Path) -> list[CheckpointFile]:
    """The cache of the folder's `pt` files, made or renewed first if it does not belong to them; empty without such."""
    sources = pt_format.find(folder)
    if not sources:
        return []
    cache = folder / CACHE
    stamps = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sources}
    index = _read_index(cache)
    if index is None or index["sources"] != stamps:
        index = _make(cache, sources, stamps)
    tensors = index["tensors"]
    shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    return [CheckpointFile(cache, shapes, partial(_read, cache, tensors))]


def _read_index(cache: Path) -> dict[str, Any] | None:
    try:
        index: dict[str, Any] = json.loads((cache / INDEX).read_bytes())
        return index
    except (OSError, ValueError):
        return None


def _make(cache: Path, sources: list[Path], stamps: dict[str, list[int]]) -> dict[str, Any]:
    """Writes aside and renames at the end, so that an interrupted start leaves no half cache behind."""
    partial_cache = cache.with_name(f"{cache.name}.partial-{os.getpid()}")
    tensors: dict[str, Any] = {}
    try:
        partial_cache.mkdir()
        for source in sources:
            for name, tensor in pt_format.load_tensors(source).items():
                file = f"{len(tensors):05d}.npy"
                bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor  # NumPy has no bfloat16
                np.save(partial_cache / file, bits.numpy())
                tensors[name] = {"file": file, "shape": list(tensor.shape), "dtype": str(tensor.dtype)}
        index = {"sources": stamps, "tensors": tensors}
        (partial_cache / INDEX).write_text(json.dumps(index))
        shutil.rmtree(cache, ignore_errors=True)
        partial_cache.rename(cache)
    except OSError as error:
        raise ModelLoadError(
            f"{cache}: the NumPy copy of the weights cannot be written ({error.strerror}); use load-format pt, or give "
            f"the folder write permission and space"
        ) from error
    finally:
        shutil.rmtree(partial_cache, ignore_errors=True)
    return index


def _read(cache: Path, tensors: dict[str, Any], wanted: frozenset[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, entry in tensors.items():
        if name not in wanted:
            continue
        path = cache / entry["file"]
        try:
            values = np.load(path, mmap_mode="c")
        except (OSError, ValueError, EOFError) as error:
            raise ModelLoadError(
                f"{path}: tensor {name} cannot be read ({error}); delete {cache} and start again"
            ) from error
        tensor = torch.from_numpy(values)
        yield name, tensor.view(torch.bfloat16) if entry["dtype"] == "torch.bfloat16" else tensor
