"""Log-probabilities and edits of logits in Triton mean what the plain reference says."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.triton_kernels.logit_edits import LogitEdits, PenaltyRows, apply_penalties, edit_logits
from appliance_kernels.triton_kernels.logprobs import token_logprobs

VOCAB = 4096 + 1000
MODEL_VOCABS = [49152, 128256, 151936]


def logits_of(count: int, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    return (3 * torch.randn(count, vocab, device=DEVICE)).to(dtype)


def check_logprobs(logits: torch.Tensor, tokens: torch.Tensor, top: int) -> None:
    own, ranks, best, ids = token_logprobs(logits, tokens, top)
    want_own, want_ranks, want_best, want_ids = reference.token_logprobs(logits, tokens, top)
    assert ids.tolist() == want_ids.tolist()
    assert ranks.tolist() == want_ranks.tolist()
    # log-probabilities to -30 in float32, summed in another order
    torch.testing.assert_close(own, want_own, atol=2e-5, rtol=0)
    torch.testing.assert_close(best, want_best, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", [30, VOCAB])
def test_logprobs_ranks_and_alternatives_match_the_reference(vocab, dtype):
    logits = logits_of(4, vocab, dtype)
    tokens = torch.randint(vocab, (4,), device=DEVICE)
    tokens[1] = logits[1].argmax()
    for top in (0, 1, 20):
        check_logprobs(logits, tokens, top)


def test_logprobs_of_rows_picked_out_of_many():
    logits = logits_of(5, VOCAB, torch.bfloat16)
    tokens = torch.tensor([3, 4000], device=DEVICE, dtype=torch.int32)
    index = torch.tensor([4, 1], device=DEVICE, dtype=torch.int32)
    got = token_logprobs(logits, tokens, 2, index=index)
    want = token_logprobs(logits[index.long()], tokens, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_alternatives_of_equal_and_of_impossible_tokens_come_in_the_order_of_their_ids():
    logits = torch.zeros(3, VOCAB, device=DEVICE)
    logits[1] = -torch.inf
    logits[1, [900, 30]] = torch.tensor([1.0, 2.0], device=DEVICE)
    logits[2, 5000] = 1.0
    check_logprobs(logits, torch.tensor([7, 30, 5000], device=DEVICE), 5)


def test_more_alternatives_than_tokens_are_refused():
    with pytest.raises(ValueError, match="between 0 and 30"):
        token_logprobs(logits_of(1, 30, torch.float32), torch.zeros(1, dtype=torch.int64, device=DEVICE), 31)


def test_a_broken_row_gives_valid_ids():
    logits = logits_of(2, VOCAB, torch.float32)
    logits[0] = torch.nan
    *_, ids = token_logprobs(logits, torch.zeros(2, dtype=torch.int64, device=DEVICE), 3)
    assert ids.min() >= 0 and ids.max() < VOCAB
    assert ids[1].tolist() == logits[1].topk(3).indices.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("vocab", MODEL_VOCABS)
def test_logprobs_over_real_vocabularies_match_the_reference(vocab, dtype):
    check_logprobs(logits_of(70, vocab, dtype), torch.randint(vocab, (70,), device=DEVICE), 20)


def int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def assert_edited(got: torch.Tensor, want: torch.Tensor) -> None:
    """One rounding: a unit in the last place, because Triton's interpreter cuts where a GPU rounds to nearest."""
    torch.testing.assert_close(got, want, atol=1e-6, rtol=torch.finfo(got.dtype).eps)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_listed_edits_add_and_ban(dtype):
    logits = logits_of(4, VOCAB, dtype)
    want = logits.clone()
    rows, tokens = int32([0, 0, 2, -1, 2]), int32([0, 5000, 17, 3, 18])
    addends = torch.tensor([1.5, -torch.inf, -100.0, 7.0, 3e38], device=DEVICE)
    edit_logits(logits, LogitEdits(rows, tokens, addends, restricted=int32([])))
    reference.edit_logits(want, rows, tokens, addends, int32([]))
    assert_edited(logits, want)
    assert torch.equal(logits[[1, 3]], want[[1, 3]])
    assert logits[2, 18].isfinite()


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_restricted_rows_keep_only_what_is_listed_for_them(dtype):
    logits = logits_of(4, VOCAB, dtype)
    want = logits.clone()
    rows, tokens = int32([1, 1, 3, 0]), int32([4, 5000, 9, 9])
    addends = torch.tensor([0.0, 1.0, 0.0, 2.0], device=DEVICE)
    edit_logits(logits, LogitEdits(rows, tokens, addends, restricted=int32([3, 1, -1])))
    reference.edit_logits(want, rows, tokens, addends, int32([3, 1, -1]))
    assert_edited(logits, want)
    assert logits[1].isfinite().nonzero().flatten().tolist() == [4, 5000]


def test_an_edit_does_not_hide_a_broken_logit():
    logits = torch.tensor([[torch.nan, torch.inf, 1.0]], device=DEVICE)
    edit_logits(logits, LogitEdits(int32([0, 0]), int32([0, 1]), torch.ones(2, device=DEVICE), int32([])))
    assert logits[0, 0].isnan() and logits[0, 1].isinf()


def check_penalties(vocab: int, dtype: torch.dtype, lengths: list[int], prompts: list[int], at_once: int) -> None:
    count = len(lengths)
    logits = logits_of(count + 1, vocab, dtype)
    want = logits.clone()
    # few different tokens, so that each occurs many times
    token_ids = torch.randint(0, min(vocab, 50), (count, max(lengths) + 3), dtype=torch.int32, device=DEVICE)
    params = PenaltyRows(
        repetition=1.0 + torch.rand(count, device=DEVICE),
        presence=torch.rand(count, device=DEVICE),
        frequency=torch.rand(count, device=DEVICE) / 8,
        token_ids=token_ids,
        num_tokens=int32(lengths),
        num_prompt_tokens=int32(prompts),
    )
    # request r is in row count - r of the logits; row 0 has no penalties
    order = list(range(count))
    batch, rows = int32([count - r for r in order] + [0]), int32([*order, -1])
    counts = torch.zeros(at_once, vocab, dtype=torch.int32, device=DEVICE)
    apply_penalties(logits, batch, rows, params, counts)
    assert not counts.any(), "the scratch is left clean"
    flipped = want[1:].flip(0)
    reference.apply_penalties(
        flipped,
        params.repetition,
        params.presence,
        params.frequency,
        [token_ids[r, :n] for r, n in enumerate(lengths)],
        prompts,
    )
    assert torch.equal(logits[0], want[0])
    assert_edited(logits[1:], flipped.flip(0))


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_penalties_weigh_each_token_of_the_text_once(dtype):
    check_penalties(200, dtype, lengths=[5, 300, 17], prompts=[5, 120, 1], at_once=2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_penalties_of_long_texts_match_the_reference(dtype):
    check_penalties(151936, dtype, [9000, 1, 4097, 300] * 5, [8000, 1, 1, 299] * 5, at_once=8)
