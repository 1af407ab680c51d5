"""Tokens chosen in Triton are those of the plain definition, and of the CPU's sampler, for the same noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance.runner.sampling.choose import choose
from appliance.runner.sampling.random import draw_keys, spread_tokens, uniform
from appliance_kernels import reference
from appliance_kernels.triton_kernels import sampling
from appliance_kernels.triton_kernels.draws import SamplingRows

# Three tiles, the last of them not full, and neither a whole number of groups.
VOCAB = 2 * 4096 + 1000
MODEL_VOCABS = [49152, 128256, 151936]


def logits_of(count: int, vocab: int, dtype: torch.dtype, spread: float = 2.0) -> torch.Tensor:
    return (spread * torch.randn(count, vocab, device=DEVICE)).to(dtype)


def random_params(
    count: int, *, temperature: list[float], top_k: list[int], top_p: list[float], min_p: list[float]
) -> SamplingRows:
    """`count` rows, each parameter going round its list, over random seeds and positions."""

    def around(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([values[i % len(values)] for i in range(count)], dtype=dtype, device=DEVICE)

    return SamplingRows(
        temperature=around(temperature, torch.float32),
        top_k=around(top_k, torch.int32),
        top_p=around(top_p, torch.float32),
        min_p=around(min_p, torch.float32),
        seed=torch.randint(-(2**63), 2**63 - 1, (count,), device=DEVICE),
        num_tokens=torch.randint(1, 100_000, (count,), dtype=torch.int32, device=DEVICE),
    )


def keys_of(params: SamplingRows) -> np.ndarray:
    return draw_keys(params.seed.cpu().numpy().view(np.uint64), params.num_tokens.cpu().numpy())


def noise_of(key: np.ndarray, vocab: int) -> torch.Tensor:
    """[vocab] float64"""
    share = uniform(spread_tokens(vocab), key).astype(np.float64)
    return torch.from_numpy(-np.log(-np.log1p(-share)))


def assert_drawn(
    token: int, noise: torch.Tensor, logits: torch.Tensor, heat: float, top_k: int, top_p: float, min_p: float
) -> None:
    """The token may be kept, and nothing that has to be kept beats it: float32 moves noise and cuts by some 1e-6."""
    slack = 1e-5
    widest = reference.sampling_distribution(logits, heat, top_k, min(top_p + slack, 1.0), min_p * (1 - slack)) > 0
    narrowest = reference.sampling_distribution(logits, heat, top_k, top_p - slack, min_p * (1 + slack)) > 0
    assert widest[token]
    noisy = (logits.double() - logits.max()) / heat + noise
    assert noisy[token] >= noisy[narrowest].max() - 1e-4


def check_sample(logits: torch.Tensor, params: SamplingRows, *, truncated: bool) -> None:
    count = len(logits)
    rows = torch.randperm(count, device=DEVICE).int()
    tokens = torch.full((count,), -1, dtype=torch.int64, device=DEVICE)
    status = torch.full((count,), -1, dtype=torch.int32, device=DEVICE)
    before = logits.clone()
    sampling.sample(logits, rows, params, truncated=truncated, tokens=tokens, status=status)
    assert not status.any()
    assert torch.equal(logits, before)
    keys = keys_of(params)
    for i, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
        heat = params.temperature[row].item()
        if heat == 0.0:
            assert token == logits[i].argmax()
        else:
            cuts = params.top_k[row].item(), params.top_p[row].item(), params.min_p[row].item()
            assert_drawn(token, noise_of(keys[row], logits.shape[1]), logits[i].cpu(), heat, *cuts)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", [5, 130, VOCAB])
def test_greedy_takes_the_first_of_the_most_likely_tokens(vocab, dtype):
    logits = logits_of(4, vocab, dtype)
    logits[2, [3, vocab - 1]] = 50.0
    logits[3] = -7.0
    tokens, status = sampling.greedy(logits)
    assert tokens.tolist() == [*logits[:2].argmax(-1).tolist(), 3, 0]
    assert status.tolist() == [sampling.OK] * 4


def test_rows_without_a_finite_maximum_are_broken_and_give_valid_ids():
    logits = logits_of(7, VOCAB, torch.float32)
    logits[1, 5000] = torch.nan
    logits[2] = torch.nan
    logits[3, 17] = torch.inf
    logits[4] = -torch.inf
    logits[5, 1:] = -torch.inf
    bad = sampling.BROKEN
    for temperature in (0.0, 1.0):
        for top_k, top_p in ((0, 1.0), (5, 0.5)):
            params = random_params(7, temperature=[temperature], top_k=[top_k], top_p=[top_p], min_p=[0.0])
            rows = torch.arange(7, device=DEVICE)
            tokens, status = sampling.sample(logits, rows, params, truncated=top_k > 0 or top_p < 1)
            assert status.tolist() == [0, bad, bad, bad, bad, 0, 0]
            assert tokens.min() >= 0 and tokens.max() < VOCAB
            assert tokens[5] == 0


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", [40, VOCAB])
def test_draws_over_all_tokens_are_the_best_with_noise(vocab, dtype):
    params = random_params(
        12, temperature=[0.7, 1.0, 0.0, 1.9], top_k=[0], top_p=[1.0], min_p=[0.0, 0.0, 0.0, 0.05, 0.2]
    )
    check_sample(logits_of(12, vocab, dtype), params, truncated=False)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", [40, VOCAB])
def test_top_k_top_p_and_min_p_cut_one_after_the_other(vocab, dtype):
    params = random_params(
        10,
        temperature=[0.7, 1.0, 0.0],
        top_k=[0, 1, 20, 0, 39],
        top_p=[0.9, 1.0, 0.3, 0.95],
        min_p=[0.0, 0.0, 0.05],
    )
    check_sample(logits_of(10, vocab, dtype, spread=3.0), params, truncated=True)


def test_a_peaked_distribution_has_its_nucleus_among_the_candidates():
    logits = logits_of(6, VOCAB, torch.float32, spread=4.0)
    params = random_params(6, temperature=[0.6], top_k=[0], top_p=[0.95, 0.5, 1e-8], min_p=[0.0])
    check_sample(logits, params, truncated=True)


@pytest.mark.parametrize(("vocab", "dtype"), [(1500, torch.float32), (1500, torch.float16), (VOCAB, torch.bfloat16)])
def test_more_tokens_than_candidates_are_cut_by_passes_over_the_row(vocab, dtype):
    # nearly flat: the nucleus is far wider than the candidates, and in 16 bits most logits have many equals
    params = random_params(3, temperature=[1.5], top_k=[0, 1100, 1400], top_p=[0.9, 1.0, 0.7], min_p=[0.0, 0.3, 0.0])
    check_sample(logits_of(3, vocab, dtype, spread=0.3), params, truncated=True)


def test_equal_logits_stay_together():
    logits = torch.zeros(4, 1500, device=DEVICE)
    params = random_params(4, temperature=[1.0], top_k=[0, 4, 1200, 4], top_p=[0.9003, 1.0], min_p=[0.0])
    check_sample(logits, params, truncated=True)


def test_the_reference_draws_the_same_tokens():
    torch.manual_seed(1)
    logits = logits_of(12, 700, torch.bfloat16)
    params = random_params(12, temperature=[0.8, 0.0, 1.2], top_k=[0, 10], top_p=[1.0, 0.8], min_p=[0.0, 0.0, 0.1])
    tokens, _ = sampling.sample(logits, torch.arange(12, device=DEVICE), params, truncated=True)
    noise = torch.stack([noise_of(key, 700) for key in keys_of(params)]).to(DEVICE)
    cuts = params.top_k, params.top_p, params.min_p
    assert tokens.tolist() == reference.sample(logits, params.temperature, *cuts, noise).tolist()


def test_few_allowed_tokens_are_the_only_ones_drawn():
    logits = torch.full((6, VOCAB), -torch.inf, device=DEVICE)
    logits[:, [7, 4000, 9000]] = torch.tensor([1.0, 0.5, 0.0], device=DEVICE)
    params = random_params(6, temperature=[1.0], top_k=[0, 2, 100], top_p=[0.9, 1.0], min_p=[0.0])
    check_sample(logits, params, truncated=True)


def test_the_cpu_sampler_draws_the_same_tokens():
    torch.manual_seed(1)  # a tie within rounding may go either way
    logits = logits_of(16, 2000, torch.float32)
    params = random_params(16, temperature=[0.8, 1.2], top_k=[0, 10], top_p=[1.0, 1.0, 0.8], min_p=[0.0, 0.0, 0.0, 0.1])
    tokens, _ = sampling.sample(logits, torch.arange(16, device=DEVICE), params, truncated=True)
    want = choose(
        logits.cpu().clone(),
        *(v.cpu().numpy() for v in (params.temperature, params.top_k, params.top_p, params.min_p)),
        params.seed.cpu().numpy().view(np.uint64),
        params.num_tokens.cpu().numpy(),
    )
    assert tokens.tolist() == want.tolist()


def test_a_draw_depends_on_seed_and_position_and_not_on_the_batch():
    logits = logits_of(1, VOCAB, torch.bfloat16).expand(6, -1).contiguous()
    params = random_params(6, temperature=[1.0, 1.0, 0.9], top_k=[0, 0, 50], top_p=[1.0, 0.3, 1.0], min_p=[0.0])
    rows = torch.arange(6, device=DEVICE)
    together, _ = sampling.sample(logits, rows, params, truncated=True)
    alone = [sampling.sample(logits[i : i + 1], rows[i : i + 1], params, truncated=True)[0].item() for i in range(6)]
    assert together.tolist() == alone
    assert len(set(alone)) > 2


def test_rows_that_stand_for_padding_are_harmless():
    logits = logits_of(3, VOCAB, torch.float32)
    params = random_params(1, temperature=[1.0], top_k=[3], top_p=[0.5], min_p=[0.1])
    rows = torch.tensor([-1, 0, -1], device=DEVICE, dtype=torch.int32)
    tokens, status = sampling.sample(logits, rows, params, truncated=True)
    assert tokens[[0, 2]].tolist() == logits[[0, 2]].argmax(-1).tolist()
    assert not status.any()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", MODEL_VOCABS)
def test_real_vocabularies_are_sampled_like_the_reference(vocab, dtype):
    params = random_params(
        61,
        temperature=[0.7, 1.0, 0.0, 1.3],
        top_k=[0, 1, 20, 0, 900, 1500],
        top_p=[0.9, 1.0, 0.3, 0.95, 1.0],
        min_p=[0.0, 0.0, 0.05],
    )
    check_sample(logits_of(61, vocab, dtype), params, truncated=True)
    plain = random_params(61, temperature=[0.7, 1.0, 0.0, 1.3], top_k=[0], top_p=[1.0], min_p=[0.0, 0.0, 0.05])
    check_sample(logits_of(61, vocab, dtype), plain, truncated=False)
    logits = logits_of(256, vocab, dtype)
    assert torch.equal(sampling.greedy(logits)[0], logits.argmax(-1))
