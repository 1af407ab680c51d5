"""Self-attention over the paged key and value cache, with grouped queries (Ainslie et al., 2023)."""

from __future__ import annotations

import torch

from appliance.models.layers.base import Layer
from appliance.models.layers.linear import Linear, MergedLinear
from appliance.models.layers.norm import RMSNorm
from appliance_kernels.ops import AttentionMetadata, DeviceMetadata, paged_attention, rotary_and_write_kv

RotaryRows = tuple[torch.Tensor, torch.Tensor]  # what turns each token, see `rotary_rows`


class Attention(Layer):
    """Project, rotate, write this step's keys and values to the cache, attend, project back.

    `sliding_window` is the number of tokens a token sees, itself included; None is all. `head_norm`, if given, is the
    kind of norm that each query and key head gets before the rotation.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        sliding_window: int | None = None,
        qkv_bias: bool = False,
        output_bias: bool = False,
        scale: float | None = None,
        head_norm: type[RMSNorm] | None = None,
        eps: float = 1e-6,
    ) -> None:
        kv_size = num_kv_heads * head_dim
        outputs = {"q_proj": num_heads * head_dim, "k_proj": kv_size, "v_proj": kv_size}
        self.qkv_proj = MergedLinear(hidden_size, outputs, qkv_bias)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, output_bias)
        self.q_norm = head_norm(head_dim, eps) if head_norm else None
        self.k_norm = head_norm(head_dim, eps) if head_norm else None
        self.eps = eps
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.sliding_window = sliding_window
        self.scale = head_dim**-0.5 if scale is None else scale

    def __call__(
        self,
        norm: RMSNorm,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        rotary: RotaryRows,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata | DeviceMetadata,
        output_rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(attention of the norm of hidden + residual, hidden + residual), `[T, H]` each, or only the tokens
        `output_rows`, `[N, H]`."""
        norms = None if self.q_norm is None else (self.q_norm.weight, self.k_norm.weight, self.eps)
        qkv, residual = self.qkv_proj.after(norm, hidden, residual)
        q = rotary_and_write_kv(qkv, rotary, kv_cache, metadata, self.num_heads, self.num_kv_heads, norms)
        out = paged_attention(q, qkv, kv_cache, metadata, self.scale, self.sliding_window)
        out = out.flatten(1)
        if output_rows is not None:
            out, residual = out.index_select(0, output_rows), residual.index_select(0, output_rows)
        return self.o_proj(out), residual
