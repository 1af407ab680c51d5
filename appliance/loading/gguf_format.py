"""Weights from GGUF files (llama.cpp's format), dequantized while they are read.

GGUF names tensors its own way, and stores two things differently from the Hugging Face layout: Llama's query and key
rows are permuted for interleaved rotation, and Gemma's norm weights have the 1 added. Both are undone here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

OUTER_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA_LAYER_NAMES = LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

SPLIT = re.compile(r"-\d{5}-of-(\d{5})$")


def find(location: Path) -> list[Path]:
    """The file, or the one GGUF model of a folder; with a split one, all its files in order."""
    if location.is_file():
        split = SPLIT.search(location.stem)
        if split is None:
            return [location] if location.suffix == ".gguf" else []
        return _complete(sorted(location.parent.glob(f"{location.stem[: split.start()]}-*-of-{split[1]}.gguf")))
    paths = sorted(location.glob("*.gguf"))
    stems = {SPLIT.sub("", path.stem) for path in paths}
    if len(stems) > 1:
        raise ModelLoadError(
            f"{location} has several GGUF models ({', '.join(path.name for path in paths)}); give the file to load"
        )
    return _complete(paths)


def open_files(location: Path) -> list[CheckpointFile]:
    """The files of the model at `location`; empty if there is none. The first of split files has the metadata."""
    readers = {path: open_reader(path) for path in find(location)}
    if not readers:
        return []
    first = next(iter(readers))
    architecture = read_field(readers[first], "general.architecture", first)
    heads = {}
    if architecture == "llama":
        heads["q_proj"] = read_field(readers[first], "llama.attention.head_count", first)
        heads["k_proj"] = read_field(readers[first], "llama.attention.head_count_kv", first, heads["q_proj"])
    files = []
    for path, reader in readers.items():
        tensors = {_hugging_face_name(tensor.name, architecture): tensor for tensor in reader.tensors}
        shapes = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
        files.append(CheckpointFile(path, shapes, partial(_read, path, architecture, heads, tensors)))
    return files


def _complete(paths: list[Path]) -> list[Path]:
    """`paths`, if no part of a split model is missing."""
    split = SPLIT.search(paths[0].stem) if paths else None
    if split and len(paths) != int(split[1]):
        raise ModelLoadError(
            f"{paths[0].parent}: {len(paths)} of the {int(split[1])} files of the split GGUF model are there"
        )
    return paths


def open_reader(path: Path) -> GGUFReader:
    """The file, mapped, with its metadata parsed."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelLoadError(
            f"{path}: reading GGUF files needs the package gguf: pip install 'pagebox[demo]'"
        ) from error
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelLoadError(f"{path}: damaged or truncated GGUF file ({error}); fetch it again") from error


def read_field(reader: GGUFReader, key: str, path: Path, default: Any = None) -> Any:
    """The value of a metadata field; ModelLoadError if it is not there and there is no default."""
    field = reader.get_field(key)
    if field is not None:
        return field.contents()
    if default is None:
        raise ModelLoadError(f"{path}: the GGUF file has no field {key}")
    return default


def _hugging_face_name(name: str, architecture: str) -> str:
    """Unknown names come back as they are: they are reported as having no place."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{kind}"
    layer_names = GEMMA_LAYER_NAMES if architecture == "gemma3" else LAYER_NAMES
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in layer_names:
        return f"model.layers.{match[1]}.{layer_names[match[2]]}.{kind}"
    return name


def _read(
    path: Path,
    architecture: str,
    heads: dict[str, int],
    tensors: dict[str, ReaderTensor],
    wanted: frozenset[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, stored in tensors.items():
        if name not in wanted:
            continue
        tensor = dequantized(stored, path)
        projection = name.split(".")[-2]
        if projection in heads:
            tensor = _unpermute(tensor, heads[projection])
        if architecture == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor - 1.0
        yield name, tensor


def dequantized(stored: ReaderTensor, path: Path) -> torch.Tensor:
    """The tensor in float32, in its own memory."""
    from gguf import dequantize

    try:
        values = dequantize(stored.data, stored.tensor_type)
    except NotImplementedError as error:
        raise ModelLoadError(
            f"{path}: tensor {stored.name} is quantized as {stored.tensor_type.name}, which cannot be read"
        ) from error
    # A copy, as unquantized tensors are read-only views of the file.
    return torch.from_numpy(np.array(values, dtype=np.float32))


def _unpermute(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """From rows in pairs (x0, y0, x1, y1, …) of each head to halves (x0, x1, …, y0, y1, …)."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
