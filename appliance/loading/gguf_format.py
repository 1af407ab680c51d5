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
ARCHITECTURES = {  # by general.architecture; Mistral models are "llama" there
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
FREQUENCY_FACTORS = "rope_freqs.weight"  # what Llama 3.1's scaling divides each inverse frequency by


def find(location: Path) -> list[Path]:
    """The file, or the one GGUF model of a folder (which may be split into numbered files)."""
    if location.is_file():
        return [location] if location.suffix == ".gguf" else []
    paths = sorted(location.glob("*.gguf"))
    stems = {re.sub(r"-\d{5}-of-\d{5}$", "", path.stem) for path in paths}
    if len(stems) > 1:
        raise ModelLoadError(
            f"{location} has several GGUF models ({', '.join(path.name for path in paths)}); give the file to load"
        )
    return paths


def open_file(path: Path) -> CheckpointFile:
    reader = _open(path)
    architecture = _text(reader, "general.architecture", path)
    shapes = {}
    names = {}
    for tensor in reader.tensors:
        name = _hugging_face_name(tensor.name, architecture)
        names[name] = tensor
        shapes[name] = tuple(int(size) for size in reversed(tensor.shape))
    return CheckpointFile(path, shapes, partial(_read, path, reader, architecture, names))


def metadata_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json, from the metadata of a GGUF file."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reader = _open(path)
    architecture = _text(reader, "general.architecture", path)
    if architecture not in ARCHITECTURES:
        raise ModelLoadError(
            f"{path}: GGUF architecture {architecture!r} is not supported (supported: {', '.join(ARCHITECTURES)})"
        )
    try:
        config: dict[str, Any] = dict(load_gguf_checkpoint(str(path), return_tensors=False)["config"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ModelLoadError(f"{path}: the GGUF metadata cannot be understood: {error}") from error
    config["architectures"] = [ARCHITECTURES[architecture]]
    config["model_type"] = "gemma3_text" if architecture == "gemma3" else architecture
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if FREQUENCY_FACTORS in tensors:
        factors = _dequantize(tensors[FREQUENCY_FACTORS], path).tolist()
        theta = config.pop("rope_theta", 10000.0)
        config["rope_parameters"] = {"rope_type": "frequency_factors", "rope_theta": theta, "factors": factors}
    return config


def _open(path: Path) -> GGUFReader:
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


def _text(reader: GGUFReader, key: str, path: Path) -> str:
    field = reader.get_field(key)
    if field is None:
        raise ModelLoadError(f"{path}: the GGUF file has no field {key}")
    return str(field.contents())


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
    reader: GGUFReader,
    architecture: str,
    tensors: dict[str, ReaderTensor],
    wanted: frozenset[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    heads = {}
    if architecture == "llama":
        heads["q_proj"] = _number(reader, "llama.attention.head_count", path)
        heads["k_proj"] = _number(reader, "llama.attention.head_count_kv", path, heads["q_proj"])
    for name, stored in tensors.items():
        if name not in wanted:
            continue
        tensor = _dequantize(stored, path)
        projection = name.split(".")[-2]
        if projection in heads:
            tensor = _unpermute(tensor, heads[projection])
        if architecture == "gemma3" and name.endswith("norm.weight"):
            tensor = tensor - 1.0
        yield name, tensor


def _number(reader: GGUFReader, key: str, path: Path, default: int | None = None) -> int:
    field = reader.get_field(key)
    if field is not None:
        return int(field.contents())
    if default is None:
        raise ModelLoadError(f"{path}: the GGUF file has no field {key}")
    return default


def _dequantize(stored: ReaderTensor, path: Path) -> torch.Tensor:
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
