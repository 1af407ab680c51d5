"""Qwen3 (Yang et al., 2025): Llama with a norm on each query and key head."""

from __future__ import annotations

from typing import Any

from appliance.models.causal_lm import CausalLM
from appliance.models.facts import sliding_windows
from appliance.models.layers.norm import RMSNorm
from appliance.models.llama import LlamaLayer


class Qwen3ForCausalLM(CausalLM):
    def make_layer(self, config: Any, index: int) -> LlamaLayer:
        return LlamaLayer(
            config,
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            sliding_window=sliding_windows(config)[index],
            head_norm=RMSNorm,
            eps=config.rms_norm_eps,
        )
