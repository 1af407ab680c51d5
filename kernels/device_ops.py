"""The operations of `ops` on a GPU. Imported only where there is one, as Triton is."""

from __future__ import annotations

import torch

from appliance_kernels.device_metadata import DeviceMetadata
from appliance_kernels.triton_kernels import skinny_linear
from appliance_kernels.triton_kernels.activation import gelu_tanh_and_mul, silu_and_mul
from appliance_kernels.triton_kernels.attention_configs import decode_config
from appliance_kernels.triton_kernels.attention_decode import DecodePlan, decode_attention, plan_decode
from appliance_kernels.triton_kernels.attention_fresh import fresh_attention, fresh_config, plan_fresh
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from appliance_kernels.triton_kernels.attention_shared_prefix import shared_prefix_decode_attention
from appliance_kernels.triton_kernels.norm import add_rms_norm, rms_norm
from appliance_kernels.triton_kernels.rotary_kv import rotary_and_write_kv

__all__ = [
    "add_norm_gated_linear",
    "add_norm_linear",
    "add_rms_norm",
    "gelu_tanh_and_mul",
    "paged_attention",
    "rms_norm",
    "rotary_and_write_kv",
    "silu_and_mul",
]


def add_norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of few rows, one launch: see `skinny_linear.add_norm_linear`."""
    overlap = skinny_linear.supports_overlap(x.device)
    return skinny_linear.add_norm_linear(x, residual, norm_weight, eps, weight, bias, overlap=overlap)


def add_norm_gated_linear(
    x: torch.Tensor, residual: torch.Tensor, norm_weight: torch.Tensor, eps: float, weight: torch.Tensor, *, gelu: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of few rows, one launch: see `skinny_linear.add_norm_gated_linear`."""
    overlap = skinny_linear.supports_overlap(x.device)
    return skinny_linear.add_norm_gated_linear(x, residual, norm_weight, eps, weight, gelu=gelu, overlap=overlap)


def paged_attention(
    q: torch.Tensor,
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: DeviceMetadata,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """q [T, Hq, D], heads contiguous; meaning as `reference.paged_attention`. Padding gets zeros or stays unset.

    qkv [T, (Hq + 2·Hk)·D] has this step's keys, rotated, and values: the cache has them too, but here they are
    contiguous, which makes attention of whole prompts half again as fast.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    count = metadata.num_decodes
    if count:
        _decode(q[:count], kv_cache, metadata, scale, sliding_window, softcap, out[:count])
    if metadata.continued_start is not None:
        tokens = slice(count, count + metadata.num_continued_tokens)
        requests = slice(count, count + metadata.num_continued)
        mixed_attention(
            q[tokens],
            kv_cache,
            metadata.block_tables[requests],
            metadata.continued_start,
            metadata.seq_lens[requests],
            scale,
            sliding_window=sliding_window,
            softcap=softcap,
            out=out[tokens],
        )
    if metadata.fresh_start is not None:
        _fresh(q, qkv, kv_cache.shape[2], metadata, scale, sliding_window, softcap, out)
    return out


def _fresh(
    q: torch.Tensor,
    qkv: torch.Tensor,
    num_kv_heads: int,
    metadata: DeviceMetadata,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    out: torch.Tensor,
) -> None:
    assert metadata.fresh_start is not None
    tokens, num_q_heads, head_dim = q.shape
    heads = qkv.view(tokens, -1, head_dim)
    config = fresh_config(q.device, head_dim, q.dtype)
    if metadata.fresh_plan is None:
        metadata.fresh_plan = plan_fresh(metadata.fresh_start, tokens, config)
    fresh_attention(
        q,
        heads[:, num_q_heads : num_q_heads + num_kv_heads],
        heads[:, num_q_heads + num_kv_heads :],
        metadata.fresh_start,
        scale,
        sliding_window=sliding_window,
        softcap=softcap,
        out=out,
        plan=metadata.fresh_plan,
        config=config,
    )


def _decode(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: DeviceMetadata,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    out: torch.Tensor,
) -> None:
    count = metadata.num_decodes
    tables, lengths = metadata.block_tables[:count], metadata.seq_lens[:count]
    plan = metadata.plans.get(sliding_window)
    if plan is None:
        plan = metadata.plans[sliding_window] = _plan(q, kv_cache, metadata, lengths, sliding_window)
    options = {"sliding_window": sliding_window, "softcap": softcap, "out": out, "plan": plan}
    shared = metadata.shared
    if shared is None:
        decode_attention(q, kv_cache, tables, lengths, scale, workspace=metadata.workspace, **options)
    else:
        shared_prefix_decode_attention(
            q,
            kv_cache,
            tables,
            lengths,
            scale,
            prefix_table=shared.table,
            num_shared_tokens=shared.num_tokens,
            workspace=shared.workspace,
            **options,
        )


def _plan(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: DeviceMetadata,
    lengths: torch.Tensor,
    sliding_window: int | None,
) -> DecodePlan:
    return plan_decode(
        lengths,
        kv_cache.shape[2],
        decode_config(q.device, q.shape[2], kv_cache.dtype),
        sliding_window=sliding_window,
        num_shared_tokens=None if metadata.shared is None else metadata.shared.num_tokens,
    )
