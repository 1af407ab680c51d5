"""Log-probabilities in Triton mean what the plain reference says."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import ALL_DTYPES, DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
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
