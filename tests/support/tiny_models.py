"""Tiny random models of each family, made by transformers, and a plain prefill of them by our engine's model code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from appliance.loading.loader import load_model
from appliance.loading.model_config import load_config
from appliance.models.causal_lm import CausalLM
from appliance.models.facts import model_facts
from appliance_kernels.metadata import AttentionMetadata

CPU = torch.device("cpu")
VOCAB_SIZE = 101
WINDOW = 12  # shorter than the prompts of the tests
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.15,  # large enough for attention that is far from uniform
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "mistral": (MistralConfig, {"sliding_window": WINDOW}),
    "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "qwen3": (Qwen3Config, {"head_dim": 24}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 24,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 20,
            "tie_word_embeddings": True,
        },
    ),
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """A seeded float32 model with two layers, every weight random; `changes` are of its configuration."""
    config_class, specifics = FAMILIES[family]
    config = config_class(**(SIZES | specifics | changes))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                weight.add_(torch.randn_like(weight) * 0.3)
    return model


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(seed))


def reference_logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    """`[T, vocab]` float32, by transformers."""
    with torch.inference_mode():
        return model(input_ids[None]).logits[0].float()


def load(location: Path, load_format: str = "auto", dtype: torch.dtype = torch.float32, **overrides: Any) -> CausalLM:
    """Our model from a folder or file."""
    config = load_config(location, overrides)
    max_model_len = model_facts(config).max_model_len
    return load_model(
        location, config, load_format=load_format, dtype=dtype, device=CPU, max_model_len=max_model_len, seed=7
    )


def logits(model: CausalLM, input_ids: torch.Tensor, chunks: list[int] | None = None) -> torch.Tensor:
    """`[T, vocab]` float32: a prefill of one request, in chunks of the given lengths (one chunk if None)."""
    block_size, total = 4, len(input_ids)
    num_blocks = -(-total // block_size)
    blocks = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(1)) + 1
    positions = torch.arange(total)
    slots = blocks[positions // block_size] * block_size + positions % block_size
    attentions = [layer.self_attn for layer in model.model.layers]
    dtype = model.model.embed_tokens.weight.dtype
    head_dim = model.model.rotary_tables[0].shape[1]
    caches = [torch.zeros(num_blocks + 1, 2, a.num_kv_heads, block_size, head_dim, dtype=dtype) for a in attentions]
    outputs = []
    start = 0
    with torch.inference_mode():
        for length in chunks or [total]:
            end = start + length
            metadata = AttentionMetadata(
                positions=positions[start:end],
                slot_mapping=slots[start:end],
                block_tables=blocks[None].int(),
                query_start=[0, length],
                seq_lens=[end],
                block_size=block_size,
            )
            outputs.append(model.compute_logits(model(input_ids[start:end], caches, metadata)))
            start = end
    return torch.cat(outputs)
