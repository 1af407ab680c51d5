"""What the scheduler and the memory plan need to know of a model: numbers from its configuration, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a model that follow from its configuration alone."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int  # of the gated feed-forward block
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_len: int  # the longest context that the position embedding is made for, tokens
    sliding_windows: tuple[int | None, ...]  # a layer: tokens that a token sees, itself included; None is all
    num_rotary_tables: int  # tables of cosines and sines, one for each kind of layer that turns differently
    num_parameters: int  # stored ones: a tied output head is not counted again

    def weight_bytes(self, bytes_per_parameter: int) -> int:
        return self.num_parameters * bytes_per_parameter

    def kv_bytes_per_token(self, bytes_per_element: int) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_element


def model_facts(config: Any) -> ModelFacts:
    """The facts of a transformers configuration of one of the supported architectures."""
    heads = config.num_attention_heads
    return ModelFacts(
        architecture=(config.architectures or ["unknown"])[0],
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        max_model_len=_max_model_len(config),
        sliding_windows=sliding_windows(config),
        num_rotary_tables=2 if config.model_type == "gemma3_text" else 1,
        num_parameters=_num_parameters(config),
    )


def sliding_windows(config: Any) -> tuple[int | None, ...]:
    """Each layer's window. A configuration without `layer_types` has the same window in all layers, or none."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types: list[str] | None = getattr(config, "layer_types", None)
    if layer_types is None:
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _max_model_len(config: Any) -> int:
    """`max_position_embeddings`, and more where the rotary embedding is stretched by a factor that it does not count.

    Llama 3 and Gemma 3 give the stretched length in `max_position_embeddings` itself. Dynamic scaling is computed
    exactly only up to it (see `layers.rotary`).
    """
    length: int = config.max_position_embeddings
    rope = config.rope_parameters
    kind = rope.get("rope_type")
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        return max(length, int(rope["original_max_position_embeddings"] * rope["factor"]))
    if kind == "linear":
        return int(length * rope["factor"])
    return length


def _num_parameters(config: Any) -> int:
    """The number of weights; a test holds it equal to what the model classes build."""
    hidden, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    kind = config.model_type
    layer = hidden * (q + 2 * kv) + q * hidden + 3 * hidden * inner + 2 * hidden
    attention_bias = kind in ("llama", "qwen3", "gemma3_text") and config.attention_bias
    if kind == "qwen2" or attention_bias:
        layer += q + 2 * kv
    if attention_bias:
        layer += hidden
    if kind == "llama" and config.mlp_bias:
        layer += 2 * inner + hidden
    if kind in ("qwen3", "gemma3_text"):
        layer += 2 * head_dim
    if kind == "gemma3_text":
        layer += 2 * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return int(config.num_hidden_layers * layer + hidden + embeddings)
