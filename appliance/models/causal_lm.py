"""What all decoder-only families have in common: embedding, a stack of layers, a norm, an output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from appliance.models.layers.attention import RotaryRows
from appliance.models.layers.base import Layer
from appliance.models.layers.embedding import Embedding
from appliance.models.layers.linear import Linear, TiedHead
from appliance.models.layers.norm import RMSNorm
from appliance.models.layers.rotary import cos_sin_table
from appliance_kernels.ops import AttentionMetadata, DeviceMetadata, rotary_rows


class DecoderLayer(Layer, ABC):
    """One layer of the stack.

    Between layers travel the last block's output and the residual stream without it, so that the addition and the
    norm that follows it are one operation.
    """

    rope: int = 0  # which of the model's rotary tables this layer turns by

    @abstractmethod
    def __call__(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotary: RotaryRows,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` and `residual` are `[T, H]`; returns the same two, after this layer.

        `output_rows` `[N]`, if given, says which tokens somebody will read: the result is `[N, H]`, and what follows
        attention is computed for them alone. Every token's keys and values are written all the same.
        """


class Decoder(Layer):
    """From token ids to the hidden states after the final norm."""

    def __init__(
        self, embedding: Embedding, layers: list[DecoderLayer], norm: RMSNorm, rotary_tables: list[torch.Tensor]
    ) -> None:
        self.embed_tokens = embedding
        self.layers = layers
        self.norm = norm
        self.rotary_tables = rotary_tables

    def __call__(
        self,
        input_ids: torch.Tensor,
        kv_caches: list[torch.Tensor],
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = self.embed_tokens(input_ids)
        residual = torch.zeros_like(hidden)
        rotary = [rotary_rows(table, metadata, hidden.dtype) for table in self.rotary_tables]
        last = len(self.layers) - 1
        for index, (layer, kv_cache) in enumerate(zip(self.layers, kv_caches, strict=True)):
            wanted = output_rows if index == last else None
            hidden, residual = layer(hidden, residual, rotary[layer.rope], kv_cache, metadata, wanted)
        return self.norm.add(hidden, residual)[0]


class CausalLM(Layer, ABC):
    """A decoder with an output head. A family says what its layers are, and where it departs from the common form."""

    norm: type[RMSNorm] = RMSNorm

    def __init__(self, config: Any, max_model_len: int, device: torch.device) -> None:
        """`config` is a transformers configuration; positions stay below `max_model_len`."""
        tables = [
            cos_sin_table(rope, head_dim(config), config.max_position_embeddings, max_model_len, device)
            for rope in self.rope_parameters(config)
        ]
        self.model = Decoder(
            Embedding(config.vocab_size, config.hidden_size, self.embedding_scale(config)),
            [self.make_layer(config, index) for index in range(config.num_hidden_layers)],
            self.norm(config.hidden_size, config.rms_norm_eps),
            tables,
        )
        tied = config.tie_word_embeddings
        self.lm_head = TiedHead(self.model.embed_tokens) if tied else Linear(config.hidden_size, config.vocab_size)
        self.logit_softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @abstractmethod
    def make_layer(self, config: Any, index: int) -> DecoderLayer: ...

    def rope_parameters(self, config: Any) -> list[dict[str, Any]]:
        """The parameters of each rotary table; a layer's `rope` is an index into this list."""
        return [config.rope_parameters]

    def embedding_scale(self, config: Any) -> float | None:
        return None

    def __call__(
        self,
        input_ids: torch.Tensor,
        kv_caches: list[torch.Tensor],
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of the tokens `output_rows` `[N]` (integers), `[N, H]`, or of all, `[T, H]`.

        `input_ids` `[T]` integers; one cache a layer, `[num_blocks, 2, Hk, block_size, D]`.
        """
        return self.model(input_ids, kv_caches, metadata, output_rows)

    def compute_logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden` `[N, H]` -> `[N, vocab_size]`: float32 on a CPU, in the model's dtype on a GPU, where the samplers
        read them once and convert on the way. `out`, on a GPU, takes them."""
        if out is not None and self.logit_softcap is None:
            return self.lm_head.into(hidden, out)
        logits = self.lm_head(hidden)
        if logits.device.type == "cpu":
            logits = logits.float()
        if self.logit_softcap is not None:
            logits = (torch.tanh(logits.float() / self.logit_softcap) * self.logit_softcap).to(logits.dtype)
        return logits if out is None else out.copy_(logits)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
