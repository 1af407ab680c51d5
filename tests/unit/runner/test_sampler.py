"""What each sampling parameter does to the choice of a token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from appliance.runner.sampling.choose import choose
from appliance.runner.sampling.random import draw_keys, gumbel_argmax, spread_tokens, uniform
from appliance.runner.sampling.sampler import BAD_LOGITS, NO_TOKEN_LEFT, error_message
from tests.unit.runner.batches import new_row, sample_rows

VOCAB = 40


def draw(logits: torch.Tensor, count: int, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=7) -> np.ndarray:
    """`count` independent choices from one distribution `logits` [vocab]."""
    return choose(
        logits.expand(count, -1).clone(),
        np.full(count, temperature, np.float32),
        np.full(count, top_k),
        np.full(count, top_p, np.float32),
        np.full(count, min_p, np.float32),
        np.full(count, seed, np.uint64),
        np.arange(count),
    )


def truncated_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """The textbook definition, token by token."""
    p = torch.softmax(logits.double() / temperature, -1).numpy()
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    reached = 0.0
    for token in order:
        if reached >= top_p and top_p < 1.0:
            p[token] = 0
        reached += p[token]
    return p / p.sum()


def assert_follows(counts: np.ndarray, want: np.ndarray) -> None:
    """Pearson's chi-square has mean df and variance 2·df: six deviations above is out of reach for a right sampler."""
    assert counts[want == 0].sum() == 0, "a token that was cut was drawn"
    kept = want > 0
    expected = counts.sum() * want[kept]
    df = kept.sum() - 1
    assert ((counts[kept] - expected) ** 2 / expected).sum() <= df + 6 * math.sqrt(2 * df) + 1e-9


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 5])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_draws_follow_the_distribution_that_the_parameters_define(temperature, top_k, top_p, min_p):
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2
    want = truncated_distribution(logits, temperature, top_k, top_p, min_p)
    tokens = draw(logits, 3000, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert_follows(np.bincount(tokens, minlength=VOCAB), want)


def test_equal_logits_stay_or_go_together():
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0, -1.0])
    assert set(draw(logits, 200, top_k=2, temperature=5.0)) == {0, 1, 2, 3}
    assert set(draw(logits, 200, top_p=0.5)) == {0, 1, 2, 3}, "the first has 0.44"
    assert set(draw(logits, 200, top_p=0.4)) == {0}
    assert set(draw(torch.zeros(5), 200, top_p=1e-6)) == set(range(5))


def test_the_kth_largest_is_found_among_the_groups_that_can_hold_it():
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(8))
    for k in (1, 3, 400, 2999, 3000, 9999):
        best = set(logits.topk(min(k, 3000)).indices.tolist())
        assert set(draw(logits, 60, top_k=k, temperature=50.0)) <= best
    assert set(draw(logits, 60, top_k=3, temperature=50.0)) == set(logits.topk(3).indices.tolist())


def test_a_logit_rounded_to_16_bits_seldom_changes_the_token():
    """Inverting the cumulative distribution would change a third of them."""
    logits = 2 * torch.randn(300, 8192, generator=torch.Generator().manual_seed(4))
    seeds, zeros, ones = np.arange(300, dtype=np.uint64), np.zeros(300, np.float32), np.ones(300, np.float32)
    exact, rounded = (
        choose(x, ones, zeros.astype(np.int64), ones, zeros, seeds, zeros.astype(np.int64))
        for x in (logits, logits.bfloat16().float())
    )
    assert (exact != rounded).mean() < 0.05


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_in_the_batch():
    logits = torch.randn(1, VOCAB)
    mine = {"temperature": 1.0, "seed": 123}
    alone = sample_rows(logits, new_row(0, [1, 2], **mine)).tokens[0]
    others = torch.randn(3, VOCAB)
    crowd = sample_rows(
        torch.cat((others[:2], logits, others[2:])),
        new_row(0, [5], temperature=0.0),
        new_row(1, [5], temperature=2.0, top_k=3, seed=123),
        new_row(2, [1, 2], **mine),
        new_row(3, [5], temperature=1.0, top_p=0.5, seed=9),
    )
    assert crowd.tokens[2] == alone


def shares(seeds: np.ndarray | int, positions: np.ndarray | int, tokens: np.ndarray | int) -> np.ndarray:
    """`uniform` of each (seed, position, token), of which only one varies."""
    count = max(np.size(seeds), np.size(positions), np.size(tokens))
    spread = spread_tokens(1_000_000)
    if np.size(tokens) == count:
        return uniform(spread[tokens], draw_keys(np.full(1, seeds, np.uint64), np.full(1, positions))[0])
    keys = draw_keys(np.broadcast_to(np.uint64(seeds), count), np.broadcast_to(np.int64(positions), count))
    return np.concatenate([uniform(spread[tokens : tokens + 1], key) for key in keys])


STREAMS = {
    "tokens": lambda: shares(42, 7, np.arange(400_000)),
    "positions": lambda: shares(42, np.arange(20_000), 11),
    "seeds": lambda: shares(np.arange(20_000), 7, 11),
    "far seeds": lambda: shares(np.arange(20_000, dtype=np.uint64) << np.uint64(44), 0, 0),
}


@pytest.mark.parametrize("varying", STREAMS)
def test_noise_is_uniform_and_neighbours_are_independent(varying):
    share = STREAMS[varying]()
    assert share.min() > 0 and share.max() < 1
    assert_follows(np.bincount((share * 128).astype(int), minlength=128), np.full(128, 1 / 128))
    # of the number and of its next bits, of each with its neighbour and one eight further
    for x in (share, share * 4096 % 1):
        for distance in (1, 8):
            first, second = (x[:-distance] * 8).astype(int), (x[distance:] * 8).astype(int)
            assert_follows(np.bincount(first * 8 + second, minlength=64), np.full(64, 1 / 64))
    # what wins a large vocabulary is the smallest: its size follows the exponential distribution
    few = share[: len(share) // 100 * 100].reshape(-1, 100).min(1)
    assert_follows(np.bincount(((1 - few) ** 100 * 16).astype(int), minlength=16), np.full(16, 1 / 16))


def test_the_winner_is_the_largest_with_exact_noise():
    generator = np.random.default_rng(6)
    spread, keys = spread_tokens(500), draw_keys(np.arange(200, dtype=np.uint64), np.arange(200))
    for key, scale in zip(keys, [0.0, 0.5, 2.0, 8.0] * 50, strict=True):
        logits = (scale * generator.standard_normal(500)).astype(np.float32)
        noise = -np.log(-np.log1p(-uniform(spread, key).astype(np.float64)))
        noisy = logits + noise
        assert noisy[gumbel_argmax(logits, spread, key)] > noisy.max() - 1e-5


def test_greedy_takes_the_most_likely_token():
    logits = torch.randn(4, VOCAB)
    tokens = sample_rows(logits, *(new_row(i, [1], temperature=0.0) for i in range(4))).tokens
    assert tokens.tolist() == logits.argmax(-1).tolist()


def greedy(logits: list[float], prompt: list[int], output: list[int], **kwargs) -> int:
    row = new_row(0, prompt, output, temperature=0.0, **kwargs)
    return int(sample_rows(torch.tensor([logits]), row).tokens[0])


def test_logit_bias_adds_to_the_logits():
    assert greedy([1.0, 0.0, 0.0], [0], [], logit_bias={2: 1.5}) == 2
    assert greedy([1.0, 0.0, 0.0], [0], [], logit_bias={0: -100.0, 1: 0.1}) == 1


def test_only_allowed_tokens_are_chosen_even_with_a_bias():
    assert greedy([9.0, 1.0, 2.0, 0.0], [0], [], allowed_token_ids=(1, 3)) == 1
    assert greedy([9.0, 1.0, 2.0, 0.0], [0], [], allowed_token_ids=(1, 3), logit_bias={3: 5.0}) == 3


def test_stop_tokens_are_impossible_before_min_tokens():
    assert greedy([9.0, 1.0, 2.0], [1], [], stop_token_ids=(0,), min_tokens=1) == 2
    assert greedy([9.0, 1.0, 2.0], [1], [2], stop_token_ids=(0,), min_tokens=1) == 0


def test_a_bad_word_is_refused_at_its_last_token_only():
    words = ((3,), (1, 2))
    assert greedy([0.0, 5.0, 1.0, 9.0], [0], [], bad_words_token_ids=words) == 1
    assert greedy([0.0, 1.0, 5.0, 9.0], [0], [1], bad_words_token_ids=words) == 1
    assert greedy([0.0, 1.0, 5.0, 9.0], [0, 1], [], bad_words_token_ids=words) == 2, (
        "its beginning in the prompt is free"
    )


def test_repetition_penalty_counts_prompt_and_output_and_pushes_both_signs_down():
    assert greedy([3.0, 2.0, 0.0], [0], [], repetition_penalty=2.0) == 1
    assert greedy([-1.0, -1.5, -9.0], [0], [], repetition_penalty=2.0) == 1
    assert greedy([3.0, 2.0, 0.0], [2], [0], repetition_penalty=2.0) == 1


def test_presence_and_frequency_penalties_count_the_output_alone():
    assert greedy([3.0, 2.0, 0.0], [0, 0, 0], [], presence_penalty=2.0, frequency_penalty=2.0) == 0
    assert greedy([3.0, 2.0, 0.0], [2], [0], presence_penalty=1.5) == 1
    assert greedy([3.0, 2.0, 0.0], [2], [0], frequency_penalty=0.5) == 0
    assert greedy([3.0, 2.0, 0.0], [2], [0, 0, 0], frequency_penalty=0.5) == 1


def test_logprobs_are_of_the_unedited_distribution_with_rank_and_alternatives():
    logits = torch.tensor([[1.0, 3.0, 2.0, -1.0]])
    found = sample_rows(logits, new_row(0, [0], temperature=0.0, logprobs=2, logit_bias={0: 50.0})).logprobs[0]
    want = logits[0].log_softmax(-1).tolist()
    assert found.token_ids == [0, 1, 2]
    assert found.logprobs == pytest.approx([want[0], want[1], want[2]])
    assert found.rank == 3


def test_logprobs_zero_gives_the_chosen_token_alone():
    found = sample_rows(torch.randn(1, VOCAB), new_row(0, [0], temperature=0.0, logprobs=0)).logprobs[0]
    assert len(found.token_ids) == 1 and found.rank == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_end_one_request_and_no_other(bad):
    logits = torch.randn(3, VOCAB)
    logits[1, 17] = bad
    sampled = sample_rows(logits, *(new_row(i, [1], temperature=1.0, seed=i) for i in range(3)))
    assert sampled.errors == {1: BAD_LOGITS}
    assert "NaN" in error_message(BAD_LOGITS)
    clean = sample_rows(logits[[0, 2]], new_row(0, [1], seed=0), new_row(1, [1], seed=2))
    assert sampled.tokens[[0, 2]].tolist() == clean.tokens.tolist()


def test_constraints_that_exclude_every_token_end_the_request_with_the_reason():
    row = new_row(0, [1], temperature=0.0, allowed_token_ids=(2,), stop_token_ids=(2,), min_tokens=3)
    assert sample_rows(torch.randn(1, VOCAB), row).errors == {0: NO_TOKEN_LEFT}
    assert "no token is left" in error_message(NO_TOKEN_LEFT)


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_p": 1e-300},
        {"temperature": 1e-300},
        {"temperature": 1e-9, "top_p": 0.9},
        {"repetition_penalty": 1e-300, "temperature": 0.0},
    ],
)
def test_extreme_values_mean_their_limit(extreme):
    logits = torch.tensor([[0.5, 3.0, 2.0]])
    row = new_row(0, [1], **({"temperature": 1.0} | extreme))
    sampled = sample_rows(logits, row)
    assert not sampled.errors
    assert sampled.tokens[0] == 1


def test_top_k_1_is_greedy_also_among_equals():
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    assert {int(sample_rows(logits, new_row(0, [1], top_k=1, seed=s)).tokens[0]) for s in range(20)} == {1}


def test_an_enormous_temperature_is_uniform():
    counts = np.bincount(
        [sample_rows(torch.randn(1, 4), new_row(0, [1], temperature=1e300, seed=s)).tokens[0] for s in range(400)]
    )
    assert counts.min() > 50
