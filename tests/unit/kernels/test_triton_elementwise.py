"""Norms, activations, and the rotary cache write in Triton mean what the plain reference says.

Each is compared with the reference on the same inputs in float32: what remains is one rounding of the result to its
dtype. One unit in the last place (`eps`) is allowed, because Triton's interpreter cuts where a GPU rounds to nearest,
and float32's order of summation.
"""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.fp8_cache import stored_as
from appliance_kernels.triton_kernels.activation import gelu_tanh_and_mul, silu_and_mul
from appliance_kernels.triton_kernels.norm import add_rms_norm, rms_norm
from appliance_kernels.triton_kernels.rotary_kv import rotary_and_write_kv
from tests.unit.kernels.paged import random_batch

SMALL_SIZES = [(3, 64), (1, 576), (5, 100)]
MODEL_SIZES = [(t, h) for t in (1, 64, 257) for h in (1024, 4096, 5120, 16384)]
HEAD_SHAPES = [(4, 2, 64), (9, 3, 64), (5, 1, 80), (2, 2, 96), (32, 8, 128), (4, 1, 256)]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    """`want` is exact, `got` was rounded once. Near zero, float32 sums of terms of size 10 differ by 1e-5."""
    assert got.isfinite().all(), "something was not written"
    torch.testing.assert_close(got.float(), want.float(), atol=2e-5, rtol=max(torch.finfo(got.dtype).eps, 2e-5))


def check_norms(rows: int, size: int, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, residual = random(rows, size, dtype=dtype), random(rows, size, dtype=dtype)
    weight = random(size, dtype=weight_dtype)
    out = poisoned(rows, size, dtype=dtype)
    assert rms_norm(x, weight, 1e-5, out=out) is out
    assert_close(out, reference.rms_norm(x.float(), weight.float(), 1e-5))

    total = residual + x
    out, residual_out = poisoned(rows, size, dtype=dtype), poisoned(rows, size, dtype=dtype)
    add_rms_norm(x, residual, weight, 1e-5, out=out, residual_out=residual_out)
    if DEVICE.type == "cuda":
        assert torch.equal(residual_out, total)
    else:
        assert_close(residual_out, residual.float() + x.float())
    assert_close(out, reference.rms_norm(residual_out.float(), weight.float(), 1e-5))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("rows", "size"), SMALL_SIZES)
def test_norms_match_the_reference(rows, size, dtype):
    check_norms(rows, size, dtype, dtype)
    check_norms(rows, size, dtype, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("rows", "size"), MODEL_SIZES)
def test_norms_of_model_sizes_match_the_reference(rows, size, dtype):
    check_norms(rows, size, dtype, dtype)


def test_residual_and_input_can_be_overwritten():
    x, residual, weight = random(4, 96), random(4, 96), random(96)
    want = reference.add_rms_norm(x.clone(), residual.clone(), weight, 1e-6)
    normed, total = add_rms_norm(x, residual, weight, 1e-6, out=x, residual_out=residual)
    assert normed is x and total is residual
    assert_close(x, want[0])
    assert torch.equal(residual, want[1])


def test_a_norm_reads_rows_that_are_part_of_wider_ones():
    wide = random(6, 200)
    assert_close(
        rms_norm(wide[:, 40:140], weight := random(100), 1e-6), reference.rms_norm(wide[:, 40:140], weight, 1e-6)
    )


def test_a_row_too_wide_to_norm_is_refused():
    with pytest.raises(ValueError, match="16384"):
        rms_norm(random(1, 16385), random(16385), 1e-6)


def check_activations(rows: int, size: int, dtype: torch.dtype) -> None:
    x = 3 * random(rows, 2 * size, dtype=dtype)
    for kernel, meaning in (
        (silu_and_mul, reference.silu_and_mul),
        (gelu_tanh_and_mul, reference.gelu_tanh_and_mul),
    ):
        out = poisoned(rows, size, dtype=dtype)
        assert kernel(x, out=out) is out
        assert_close(out, meaning(x.float()))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(3, 40), (2, 2048), (1, 1100)])
def test_gated_activations_match_the_reference(rows, size, dtype):
    check_activations(rows, size, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 3072), (64, 14336), (333, 1536)])
def test_gated_activations_of_model_sizes_match_the_reference(rows, size, dtype):
    check_activations(rows, size, dtype)


def test_gated_activations_of_huge_values_do_not_overflow():
    x = torch.tensor([[-1e4, 1e4, -200.0, 200.0, 1.0, 1.0, 1.0, 1.0]], device=DEVICE)
    assert_close(silu_and_mul(x), reference.silu_and_mul(x))
    assert_close(gelu_tanh_and_mul(x), reference.gelu_tanh_and_mul(x))


def check_rotary(
    requests: list[tuple[int, int]],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    *,
    rot_dim: int | None = None,
    norm: bool = False,
    block_size: int = 16,
    q_out: bool = False,
    keys_in_place: bool = False,
    padding: int = 2,
    cache_dtype: torch.dtype | None = None,
) -> None:
    num_q, num_kv, dim = heads
    rot_dim = rot_dim or dim
    num_blocks = 2 + sum(-(-length // block_size) for _, length in requests)
    metadata = random_batch(requests, block_size, num_blocks)
    real = len(metadata.positions)
    metadata.positions, metadata.slot_blocks, metadata.slot_offsets = (
        v.to(DEVICE) for v in (metadata.positions, metadata.slot_blocks, metadata.slot_offsets)
    )
    slots = torch.cat((metadata.slot_mapping, torch.full((padding,), -1))).to(DEVICE)
    positions = torch.cat((metadata.positions, torch.full((padding,), 10**9, device=DEVICE)))  # never looked at
    angles = 7 * torch.rand(1 + int(metadata.positions.max()), rot_dim // 2, device=DEVICE)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    qkv = random(real + padding, (num_q + 2 * num_kv) * dim, dtype=dtype)
    before = qkv.clone()
    qk_norm = (random(dim, dtype=dtype), random(dim, dtype=dtype), 1e-6) if norm else None
    cache = poisoned(num_blocks, 2, num_kv, block_size, dim, dtype=dtype).to(cache_dtype or dtype)

    out = poisoned(real + padding, num_q, dim, dtype=dtype) if q_out else None
    q = rotary_and_write_kv(
        qkv, cos_sin, positions, cache, slots, num_q, num_kv, qk_norm, q_out=out, keys_in_place=keys_in_place
    )

    want_cache = torch.full(cache.shape, torch.nan, device=DEVICE)
    want_qkv = before[:real].float().clone()
    rows = reference.rotary_rows(cos_sin, metadata.positions, torch.float32)
    wide_norm = (qk_norm[0].float(), qk_norm[1].float(), 1e-6) if qk_norm else None
    want_q = reference.rotary_and_write_kv(want_qkv, rows, want_cache, metadata, num_q, num_kv, wide_norm)
    assert_close(q[:real], want_q)
    got_cache = cache.float()
    written = ~want_cache.isnan()
    assert torch.equal(~got_cache.isnan(), written), "exactly the given slots are written"
    if cache_dtype is None:
        assert_close(got_cache[written].to(dtype), want_cache[written])
        assert torch.equal(got_cache[:, 1][written[:, 1]], want_cache[:, 1][written[:, 1]]), "values are copied"
    else:
        values = stored_as(want_cache[:, 1], cache_dtype).float()
        assert torch.equal(got_cache[:, 1][written[:, 1]], values[written[:, 1]]), "values are rounded once"
        # half a unit in the last of three bits, half of the smallest number, and what float32 sums differ by
        eps = torch.finfo(cache_dtype).eps
        torch.testing.assert_close(got_cache[written], want_cache[written], atol=2**-10 + 2e-5, rtol=eps / 2)
    in_qkv = qkv.view(real + padding, -1, dim)
    old = before.view(real + padding, -1, dim)
    assert torch.equal(in_qkv[real:], old[real:]), "padding is left alone"
    assert torch.equal(in_qkv[:, num_q + num_kv :], old[:, num_q + num_kv :]), "values stay"
    keys = in_qkv[:real, num_q : num_q + num_kv]
    if keys_in_place:
        assert_close(keys, want_qkv.view(real, -1, dim)[:, num_q : num_q + num_kv])
    else:
        assert torch.equal(keys, old[:real, num_q : num_q + num_kv])
    if q_out:
        assert q is out
        assert torch.equal(in_qkv[:, :num_q], old[:, :num_q])
    else:
        assert q.data_ptr() == qkv.data_ptr()


REQUESTS = [(3, 20), (1, 33), (2, 2)]


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("heads", HEAD_SHAPES)
def test_queries_turn_and_keys_and_values_reach_their_slots(heads, dtype):
    check_rotary(REQUESTS, heads, dtype)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("rot_dim", [None, 32, 48])
def test_heads_are_normed_before_they_turn(rot_dim, dtype):
    check_rotary(REQUESTS, (6, 2, 64), dtype, norm=True, rot_dim=rot_dim, block_size=32)


@pytest.mark.parametrize("rot_dim", [None, 32])
@pytest.mark.parametrize("norm", [False, True])
def test_queries_can_go_elsewhere_and_keys_be_overwritten(norm, rot_dim):
    check_rotary(REQUESTS, (6, 2, 64), torch.float32, norm=norm, rot_dim=rot_dim, q_out=True, keys_in_place=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("heads", [*HEAD_SHAPES, (16, 8, 128)])
@pytest.mark.parametrize("norm", [False, True])
def test_many_tokens_turn_and_reach_their_slots(heads, norm, dtype):
    check_rotary([(700, 900), (1, 500), (123, 123)], heads, dtype, norm=norm)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("norm", [False, True])
def test_an_fp8_cache_gets_rounded_keys_and_values(norm, dtype):
    check_rotary(REQUESTS, (6, 2, 64), dtype, norm=norm, rot_dim=32, cache_dtype=torch.float8_e4m3fn)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_an_fp8_cache_of_many_tokens_gets_rounded_keys_and_values(dtype):
    check_rotary([(60, 90), (1, 50)], (16, 8, 128), dtype, cache_dtype=torch.float8_e4m3fn)


def test_a_cache_of_other_heads_is_refused():
    cache = random(4, 2, 3, 16, 64)
    with pytest.raises(ValueError, match="2 key/value heads"):
        index = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        rotary_and_write_kv(random(1, 8 * 64), random(8, 64), index, cache, index, 4, 2)
