"""Mistral 7B (Jiang et al., 2023): Llama with a sliding window in every layer."""

from __future__ import annotations

from typing import Any

from appliance.models.causal_lm import CausalLM
from appliance.models.facts import sliding_windows
from appliance.models.llama import LlamaLayer


class MistralForCausalLM(CausalLM):
    def make_layer(self, config: Any, index: int) -> LlamaLayer:
        return LlamaLayer(config, sliding_window=sliding_windows(config)[index])
