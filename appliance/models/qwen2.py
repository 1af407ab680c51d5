"""Qwen2 and Qwen2.5 (Yang et al., 2024): Llama with biases on queries, keys and values, and windows in upper layers."""

from __future__ import annotations

from typing import Any

from appliance.models.causal_lm import CausalLM
from appliance.models.facts import sliding_windows
from appliance.models.llama import LlamaLayer


class Qwen2ForCausalLM(CausalLM):
    def make_layer(self, config: Any, index: int) -> LlamaLayer:
        return LlamaLayer(config, qkv_bias=True, sliding_window=sliding_windows(config)[index])
