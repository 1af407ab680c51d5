"""Llama (Touvron et al., 2023; Llama 3: Dubey et al., 2024), and the models of the same form, like SmolLM2."""

from __future__ import annotations

from typing import Any

import torch

from appliance.models.causal_lm import CausalLM, DecoderLayer, head_dim
from appliance.models.layers.attention import Attention, RotaryRows
from appliance.models.layers.mlp import GatedMLP
from appliance.models.layers.norm import RMSNorm
from appliance_kernels.ops import AttentionMetadata, DeviceMetadata


class LlamaLayer(DecoderLayer):
    """`x += attention(norm(x)); x += mlp(norm(x))`. Takes the attention's variant parts as `attention_options`."""

    def __init__(self, config: Any, *, mlp_bias: bool = False, **attention_options: Any) -> None:
        hidden_size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(hidden_size, eps)
        self.self_attn = Attention(
            hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            head_dim(config),
            **attention_options,
        )
        self.post_attention_layernorm = RMSNorm(hidden_size, eps)
        self.mlp = GatedMLP(hidden_size, config.intermediate_size, config.hidden_act, mlp_bias)

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
        return self.mlp(self.post_attention_layernorm, hidden, residual)


class LlamaForCausalLM(CausalLM):
    def make_layer(self, config: Any, index: int) -> LlamaLayer:
        return LlamaLayer(
            config,
            mlp_bias=config.mlp_bias,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
        )
