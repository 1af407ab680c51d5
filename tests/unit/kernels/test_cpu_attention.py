"""The batched CPU attention means what the plain reference says."""

from __future__ import annotations

import random

import pytest
import torch

from appliance_kernels import cpu_attention, reference
from tests.unit.kernels.paged import random_batch

NUM_BLOCKS = 400
# float32 differs by summation order only. bfloat16 rounds scores and probabilities to 8 bits of mantissa: values are of
# size 1, a few hundred terms average out, so 3e-2 is several times what is seen.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


def compare(
    requests,
    *,
    block_size=16,
    heads=(2, 3),
    head_dim=64,
    dtype=torch.float32,
    cache_dtype=None,
    window=None,
    shared_blocks=0,
    seed=0,
):
    torch.manual_seed(seed)
    num_kv_heads, per_kv = heads
    metadata = random_batch(requests, block_size, NUM_BLOCKS, shared_blocks=shared_blocks, seed=seed)
    cache = torch.randn(NUM_BLOCKS, 2, num_kv_heads, block_size, head_dim)
    cache[0] = 1e4 if cache_dtype is None else 448.0  # where the padding of block tables points: loud if attended to
    cache = cache.to(cache_dtype or dtype)
    q = torch.randn(metadata.query_start[-1], num_kv_heads * per_kv, head_dim).to(dtype)
    got = cpu_attention.paged_attention(q, cache, metadata, head_dim**-0.5, window)
    want = reference.paged_attention(q, cache, metadata, head_dim**-0.5, window)
    torch.testing.assert_close(got.float(), want.float(), atol=TOLERANCE[dtype], rtol=0)
    return metadata


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 7, 40])
@pytest.mark.parametrize("block_size", [16, 32])
def test_mixed_prefill_and_decode_match_the_reference(dtype, window, block_size):
    requests = [(1, 1), (1, 300), (1, 17), (40, 40), (5, 90), (1, 64), (33, 65), (1, 299)]
    compare(requests, dtype=dtype, window=window, block_size=block_size)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 128])
@pytest.mark.parametrize("heads", [(1, 1), (3, 3), (8, 1)])
def test_every_head_shape_matches_the_reference(head_dim, heads):
    compare([(1, 50), (1, 33), (9, 41)], head_dim=head_dim, heads=heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_prefix_is_read_apart_and_changes_nothing(dtype):
    requests = (
        [(1, 330 + 7 * i) for i in range(6)]
        + [(3 + i, 370 + i) for i in range(6)]
        + [(9, 380), (12, 390)]
        + [(300, 400)]
    )
    metadata = compare(requests, shared_blocks=20, dtype=dtype)
    batches, alone = metadata.plans[None]
    assert [batch.prefix_rows is not None for batch in batches] == [True, True, False], (
        "1, 8 and 16 queries wide; too few share the last"
    )
    assert len(alone) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 40])
def test_an_fp8_cache_is_read_in_the_dtype_of_the_queries(dtype, window):
    shape = {"dtype": dtype, "window": window, "cache_dtype": torch.float8_e4m3fn}
    compare([(1, 1), (1, 300), (1, 17), (40, 40), (5, 90), (1, 64), (33, 65), (300, 400)], **shape)
    compare([(1, 330 + 7 * i) for i in range(6)], shared_blocks=20, **shape)


def test_lengths_far_apart_are_not_padded_to_the_longest():
    metadata = compare([(1, 2000), (1, 1900)] + [(1, 20 + i) for i in range(8)])
    batches, _ = metadata.plans[None]
    padded = sum(batch.mask.shape[0] // 2 * batch.mask.shape[-1] for batch in batches)
    assert padded < 2 * (3900 + 10 * 40)


def test_random_batches_match_the_reference():
    rng = random.Random(1)
    for trial in range(40):
        shared = rng.choice([0, 0, 12])
        block_size = rng.choice([16, 32])
        requests = []
        for _ in range(rng.randint(1, 9)):
            length = rng.randint(1, 200) + shared * block_size
            requests.append((min(length, rng.choice([1, 1, 1, 2, 30, length if not shared else 3])), length))
        compare(
            requests,
            block_size=block_size,
            heads=rng.choice([(1, 1), (1, 3), (3, 1), (2, 4)]),
            head_dim=rng.choice([16, 64]),
            dtype=rng.choice([torch.float32, torch.bfloat16]),
            window=rng.choice([None, None, 5, 60]),
            shared_blocks=shared,
            seed=trial,
        )
