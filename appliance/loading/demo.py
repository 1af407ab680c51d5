"""Turns the demo model's GGUF file into a normal Hugging Face folder.

The file is SmolLM2-135M-Instruct (Llama architecture, byte-level BPE) as a package on the package index ships it. The
folder that comes out is what the model's authors publish: `config.json`, `generation_config.json`, `model.safetensors`,
`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from appliance.loading import gguf_format
from appliance.loading.gguf_config import metadata_config

_CONTROL_TOKEN = 3  # GGUF's token type for special tokens


def convert_gguf_to_folder(
    source: Path, target: Path, dtype: str, report_progress: Callable[[float], None] = lambda fraction: None
) -> None:
    """Write the model of GGUF file `source` into the existing folder `target`, weights as `dtype`.

    `dtype` is "bfloat16", "float16" or "float32"; `report_progress` is told the fraction (0 to 1) of tensors done.
    Raises `ModelLoadError` for a file that can't be read.
    """
    facts = {name: field.contents() for name, field in gguf_format.open_reader(source).fields.items()}
    [file] = gguf_format.open_files(source)
    tensors = {}
    for name, weight in file.read(frozenset(file.shapes)):
        tensors[name] = weight.to(getattr(torch, dtype)).contiguous()
        report_progress(len(tensors) / len(file.shapes))
    weights = target / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # written for its owner alone, but the engine may be another user
    config = metadata_config([source]) | {"pad_token_id": facts["tokenizer.ggml.padding_token_id"]}
    config["rms_norm_eps"] = round(config["rms_norm_eps"], 12)  # stored as a float32
    config["torch_dtype"] = dtype
    del config["dtype"]
    _write_json(target / "config.json", config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(target / "generation_config.json", {name: config[name] for name in ids})
    _tokenizer(facts).save(str(target / "tokenizer.json"))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(facts))
    (target / "chat_template.jinja").write_text(facts["tokenizer.chat_template"], encoding="utf-8")


def _tokenizer(facts: dict[str, Any]) -> Tokenizer:
    """The `smollm` tokenizer: every digit on its own, then GPT-2's byte-level BPE; no prefix, no suffix."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _tokenizer_config(facts: dict[str, Any]) -> dict[str, Any]:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
        "chat_template": facts["tokenizer.chat_template"],
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
