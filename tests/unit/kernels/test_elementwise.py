"""Norms, rotary embedding, activations and packed weights against independent formulas."""

from __future__ import annotations

import math

import pytest
import torch

from appliance_kernels import ops
from tests.unit.kernels.paged import random_batch


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_matches_torch(rows, dtype):
    x, weight = torch.randn(rows, 576).to(dtype), torch.randn(576).to(dtype)
    want = torch.nn.functional.rms_norm(x.double(), (576,), weight.double(), 1e-5)
    # one rounding of the result: half a unit in the last place of values below 16
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5).double(), want, atol=1e-5, rtol=torch.finfo(dtype).eps)


def test_rms_norm_of_zeros_is_zero_because_of_eps():
    assert ops.rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6).abs().max() == 0


def test_add_rms_norm_returns_the_sum_and_its_norm():
    (x, residual), weight = torch.randn(2, 4, 64), torch.randn(64)
    normed, total = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(total, residual + x)
    assert torch.equal(normed, ops.rms_norm(residual + x, weight, 1e-5))


def test_gated_activations_split_gate_and_up():
    x = torch.randn(5, 32)
    gate, up = x[:, :16], x[:, 16:]
    torch.testing.assert_close(ops.silu_and_mul(x), gate * torch.sigmoid(gate) * up)
    gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    torch.testing.assert_close(ops.gelu_tanh_and_mul(x), gelu * up)


def complex_rotation(heads: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Rotary embedding as complex numbers: pair (i, i + D/2) turns by position times frequency i."""
    half = heads.shape[-1] // 2
    turned = torch.complex(heads[..., :half].double(), heads[..., half:].double()) * torch.polar(
        torch.ones((), dtype=torch.float64), positions[:, None, None] * frequencies.double()
    )
    return torch.cat((turned.real, turned.imag), -1).to(heads.dtype)


@pytest.mark.parametrize("rot_dim", [16, 8])
def test_keys_and_values_are_stored_rotated_at_their_slots(rot_dim):
    head_dim, q_heads, kv_heads, block_size = 16, 6, 2, 4
    metadata = random_batch([(5, 9), (1, 3), (2, 2)], block_size, 20)
    tokens = len(metadata.positions)
    frequencies = 100.0 ** -(torch.arange(rot_dim // 2) / (rot_dim // 2))
    angles = torch.arange(32)[:, None] * frequencies
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * head_dim)
    before = qkv.clone().view(tokens, -1, head_dim)
    cache = torch.full((20, 2, kv_heads, block_size, head_dim), torch.nan)

    rows = ops.rotary_rows(cos_sin, metadata, torch.float32)
    q = ops.rotary_and_write_kv(qkv, rows, cache, metadata, q_heads, kv_heads)

    def rotated(heads: torch.Tensor) -> torch.Tensor:
        return torch.cat(
            (complex_rotation(heads[..., :rot_dim], metadata.positions, frequencies), heads[..., rot_dim:]), -1
        )

    torch.testing.assert_close(q, rotated(before[:, :q_heads]))
    for t, slot in enumerate(metadata.slot_mapping.tolist()):
        stored = cache[slot // block_size, :, :, slot % block_size]
        torch.testing.assert_close(stored[0], rotated(before[:, q_heads : q_heads + kv_heads])[t])
        torch.testing.assert_close(stored[1], before[t, q_heads + kv_heads :])
    written = (~cache.isnan()).any(-1).sum().item()
    assert written == tokens * 2 * kv_heads, "nothing but the given slots is written"


def test_query_and_key_norms_come_before_the_rotation():
    cos_sin = torch.cat((torch.ones(4, 8), torch.zeros(4, 8)), -1)  # no rotation
    qkv = torch.randn(3, (2 + 2) * 16)
    before = qkv.clone().view(3, 4, 16)
    cache = torch.zeros(2, 2, 1, 4, 16)
    metadata = random_batch([(3, 3)], 4, 2)  # block 1, the only one but 0
    q_weight, k_weight = torch.randn(2, 16)
    rows = ops.rotary_rows(cos_sin, metadata, torch.float32)
    q = ops.rotary_and_write_kv(qkv, rows, cache, metadata, 2, 1, (q_weight, k_weight, 1e-6))
    torch.testing.assert_close(q, ops.rms_norm(before[:, :2], q_weight, 1e-6))
    torch.testing.assert_close(cache[1, 0, 0, :3], ops.rms_norm(before[:, 2], k_weight, 1e-6))
    assert torch.equal(cache[1, 1, 0, :3], before[:, 3])


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_a_packed_weight_multiplies_like_the_plain_one(tokens):
    weight, bias = torch.randn(48, 32).bfloat16(), torch.randn(48).bfloat16()
    x = torch.randn(tokens, 32).bfloat16()
    packed = ops.pack_linear_weight(weight)
    for b in (None, bias):
        want = torch.nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
        torch.testing.assert_close(ops.linear(x, packed, b).double(), want, rtol=2**-7, atol=2**-5)
