"""The kernels as the models call them. Which implementation runs is decided here and nowhere else.

On a GPU these are Triton's (`device_ops`). Attention and the cache write follow the kind of metadata, everything else
the device of its input; so the path of the GPU also runs on the CPU, under Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch

from appliance_kernels import cpu_attention, cpu_norm, reference
from appliance_kernels.cpu_norm import PackedNormWeight
from appliance_kernels.device_metadata import DeviceMetadata
from appliance_kernels.linear import InvariantWeight, PackedLinearWeight, is_skinny, linear, pack_linear_weight
from appliance_kernels.metadata import AttentionMetadata

__all__ = [
    "AttentionMetadata",
    "DeviceMetadata",
    "InvariantWeight",
    "PackedLinearWeight",
    "PackedNormWeight",
    "add_norm_gated_linear",
    "add_norm_linear",
    "add_rms_norm",
    "gelu_tanh_and_mul",
    "linear",
    "pack_linear_weight",
    "pack_norm_weight",
    "paged_attention",
    "rms_norm",
    "rotary_and_write_kv",
    "rotary_rows",
    "silu_and_mul",
]


SKINNY_NORM_SIZE = 8192  # elements that one program can norm beside its product


@cache
def _device_ops() -> ModuleType:
    from appliance_kernels import device_ops  # imports Triton, which a machine without a GPU need not have

    return device_ops


def pack_norm_weight(weight: torch.Tensor) -> torch.Tensor | PackedNormWeight:
    """`weight` [H] in the form that the norms take fastest on its device."""
    if weight.device.type != "cpu":
        return weight
    weight = weight.float()
    return PackedNormWeight(weight, torch.cat((weight, weight)))


def rms_norm(x: torch.Tensor, weight: torch.Tensor | PackedNormWeight, eps: float) -> torch.Tensor:
    """Meaning, shapes and dtypes as `reference.rms_norm`; x [T, H] with a packed weight."""
    if isinstance(weight, PackedNormWeight):
        return cpu_norm.rms_norm(x, weight, eps)
    if x.is_cuda:
        return _device_ops().rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | PackedNormWeight, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Meaning, shapes and dtypes as `reference.add_rms_norm`."""
    if isinstance(weight, PackedNormWeight):
        residual = residual + x
        return cpu_norm.rms_norm(residual, weight, eps), residual
    if x.is_cuda:
        return _device_ops().add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def add_norm_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor | PackedNormWeight,
    eps: float,
    weight: torch.Tensor | PackedLinearWeight | InvariantWeight,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear` of `add_rms_norm`: ([T, N], new residual [T, H])."""
    if is_skinny(x, weight) and x.shape[1] <= SKINNY_NORM_SIZE:
        return _device_ops().add_norm_linear(x, residual, norm_weight, eps, weight, bias)
    normed, residual = add_rms_norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), residual


def add_norm_gated_linear(
    x: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor | PackedNormWeight,
    eps: float,
    weight: torch.Tensor | PackedLinearWeight | InvariantWeight,
    bias: torch.Tensor | None,
    activate: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same with `activate`, one of the gated activations, after it: ([T, I], new residual [T, H]).

    weight [2·I, H], gate and up one below the other.
    """
    if is_skinny(x, weight) and bias is None and x.shape[1] <= SKINNY_NORM_SIZE:
        gelu = activate is gelu_tanh_and_mul
        return _device_ops().add_norm_gated_linear(x, residual, norm_weight, eps, weight, gelu=gelu)
    gate_up, residual = add_norm_linear(x, residual, norm_weight, eps, weight, bias)
    return activate(gate_up), residual


def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Meaning, shapes and dtypes as `reference.silu_and_mul`."""
    return _device_ops().silu_and_mul(x) if x.is_cuda else reference.silu_and_mul(x)


def gelu_tanh_and_mul(x: torch.Tensor) -> torch.Tensor:
    """Meaning, shapes and dtypes as `reference.gelu_tanh_and_mul`."""
    return _device_ops().gelu_tanh_and_mul(x) if x.is_cuda else reference.gelu_tanh_and_mul(x)


def rotary_rows(
    cos_sin: torch.Tensor, metadata: AttentionMetadata | DeviceMetadata, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rotary_and_write_kv` needs to turn the tokens of a step by the table `cos_sin` [max_len, rot_dim] float32.

    On a GPU the table itself and the positions: the kernel reads its rows. Else as `reference.rotary_rows`.
    """
    if isinstance(metadata, DeviceMetadata):
        return cos_sin, metadata.positions
    return reference.rotary_rows(cos_sin, metadata.positions, dtype)


def rotary_and_write_kv(
    qkv: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata | DeviceMetadata,
    num_q_heads: int,
    num_kv_heads: int,
    qk_norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Meaning, shapes and dtypes as `reference.rotary_and_write_kv`; `rotary` is what `rotary_rows` returned."""
    if isinstance(metadata, DeviceMetadata):
        queries: torch.Tensor = _device_ops().rotary_and_write_kv(
            qkv,
            *rotary,
            kv_cache,
            metadata.slot_mapping,
            num_q_heads,
            num_kv_heads,
            qk_norm,
            keys_in_place=metadata.fresh_start is not None,
        )
        return queries
    return reference.rotary_and_write_kv(qkv, rotary, kv_cache, metadata, num_q_heads, num_kv_heads, qk_norm)


def paged_attention(
    q: torch.Tensor,
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata | DeviceMetadata,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention over paged keys and values; meaning, shapes and dtypes as `reference.paged_attention`.

    q and qkv are what `rotary_and_write_kv` returned and left behind.
    """
    if isinstance(metadata, DeviceMetadata):
        out: torch.Tensor = _device_ops().paged_attention(q, qkv, kv_cache, metadata, scale, sliding_window, softcap)
        return out
    if softcap is None:
        return cpu_attention.paged_attention(q, kv_cache, metadata, scale, sliding_window)
    return reference.paged_attention(q, kv_cache, metadata, scale, sliding_window, softcap)
