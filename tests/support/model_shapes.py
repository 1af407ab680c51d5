"""Facts of well-known models, for arithmetic that needs no configuration file."""

from __future__ import annotations

from appliance.models.facts import ModelFacts

LLAMA_3_1_8B = ModelFacts(
    architecture="LlamaForCausalLM",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    max_model_len=131072,
    sliding_windows=(None,) * 32,
    num_rotary_tables=1,
    num_parameters=8_030_261_248,
)
QWEN3_0_6B = ModelFacts(
    architecture="Qwen3ForCausalLM",
    num_layers=28,
    hidden_size=1024,
    intermediate_size=3072,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_model_len=40960,
    sliding_windows=(None,) * 28,
    num_rotary_tables=1,
    num_parameters=596_049_920,
)
