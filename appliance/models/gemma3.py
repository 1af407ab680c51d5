"""Gemma 3, text (Gemma Team, 2025): norms before and after each block, five layers with a sliding window for each one
that sees everything, and another rotary base in each kind."""

from __future__ import annotations

from typing import Any

import torch

from appliance.models.causal_lm import CausalLM, DecoderLayer, head_dim
from appliance.models.facts import sliding_windows
from appliance.models.layers.attention import Attention, RotaryRows
from appliance.models.layers.mlp import GatedMLP
from appliance.models.layers.norm import OffsetRMSNorm
from appliance_kernels.ops import AttentionMetadata, DeviceMetadata

FULL, SLIDING = 0, 1  # the model's two rotary tables


class Gemma3Layer(DecoderLayer):
    """`x += norm(attention(norm(x))); x += norm(mlp(norm(x)))`"""

    def __init__(self, config: Any, sliding_window: int | None) -> None:
        hidden_size, eps = config.hidden_size, config.rms_norm_eps
        self.rope = FULL if sliding_window is None else SLIDING
        self.input_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.self_attn = Attention(
            hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim(config),
            sliding_window=sliding_window,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            scale=config.query_pre_attn_scalar**-0.5,
            head_norm=OffsetRMSNorm,
            eps=eps,
        )
        self.post_attention_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.pre_feedforward_layernorm = OffsetRMSNorm(hidden_size, eps)
        self.mlp = GatedMLP(hidden_size, config.intermediate_size, config.hidden_activation)
        self.post_feedforward_layernorm = OffsetRMSNorm(hidden_size, eps)

    def __call__(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotary: RotaryRows,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, residual = self.self_attn(
            self.input_layernorm, hidden, residual, rotary, kv_cache, metadata, output_rows
        )
        hidden = self.post_attention_layernorm(hidden)
        hidden, residual = self.mlp(self.pre_feedforward_layernorm, hidden, residual)
        return self.post_feedforward_layernorm(hidden), residual


class Gemma3ForCausalLM(CausalLM):
    norm = OffsetRMSNorm

    def make_layer(self, config: Any, index: int) -> Gemma3Layer:
        return Gemma3Layer(config, sliding_windows(config)[index])

    def rope_parameters(self, config: Any) -> list[dict[str, Any]]:
        return [config.rope_parameters["full_attention"], config.rope_parameters["sliding_attention"]]

    def embedding_scale(self, config: Any) -> float:
        return config.hidden_size**0.5
