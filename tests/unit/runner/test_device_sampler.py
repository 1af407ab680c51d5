"""The sampler of the device chooses, edits, reports and fails as the CPU's does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance.engine.step import NewRow
from appliance.runner.cuda.sampler import DeviceSampler, prompt_logprobs
from appliance.runner.rows import Rows
from appliance.runner.sampling.logprobs import token_logprobs
from appliance.runner.sampling.sampler import OK, sample
from appliance_kernels.triton_kernels.draws import SamplingRows
from tests.unit.runner.batches import new_row

VOCAB = 300
EDITS = [
    {"logit_bias": {3: 4.0, 250: -100.0, 7: 2.5}},
    {"allowed_token_ids": (1, 5, 299, 5), "logit_bias": {5: 3.0, 9: 50.0}},
    {"min_tokens": 4, "stop_token_ids": tuple(range(0, 300, 2))},
    {"min_tokens": 1, "stop_token_ids": tuple(range(0, 300, 2))},
    {"bad_words_token_ids": ((11,), (4, 12), (9, 13))},
    {"repetition_penalty": 1.8},
    {"presence_penalty": 1.5, "frequency_penalty": 0.3},
    {"repetition_penalty": 0.5, "frequency_penalty": -1.0, "logit_bias": {4: 1.0}, "bad_words_token_ids": ((2,),)},
]


def filled(*new: NewRow) -> Rows:
    rows = Rows(len(new), 64)
    for row in new:
        rows.add(row)
    return rows


def on_device(rows: Rows) -> SamplingRows:
    """The same parameters where the kernels read them."""

    def copy(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(values).to(DEVICE, dtype)

    return SamplingRows(
        temperature=copy(rows.temperature, torch.float32),
        top_k=copy(rows.top_k, torch.int32),
        top_p=copy(rows.top_p, torch.float32),
        min_p=copy(rows.min_p, torch.float32),
        seed=copy(rows.seed.view(np.int64), torch.int64),
        num_tokens=copy(rows.num_tokens, torch.int32),
    )


def compare(rows: Rows, logits: torch.Tensor, order: list[int]) -> None:
    """Both samplers, given row `order[i]` with `logits[i]`."""
    numbers = np.array(order, dtype=np.int64)
    want = sample(logits.float().cpu().clone(), numbers, rows)
    sampler = DeviceSampler(rows, on_device(rows), DEVICE)
    before = logits.clone()
    samples = sampler.sample(logits, numbers, torch.tensor(order, dtype=torch.int32, device=DEVICE))
    assert torch.equal(logits, before) or not before.isfinite().all(), "the model's logits were edited"
    tokens, status = samples.tokens_and_status.tolist()
    assert {i: s for i, s in enumerate(status) if s != OK} == want.errors
    fine = [i for i in range(len(order)) if i not in want.errors]
    assert [tokens[i] for i in fine] == want.tokens[fine].tolist()
    found = samples.logprobs()
    assert found.keys() == want.logprobs.keys()
    for i in sorted(found.keys() - want.errors.keys()):
        assert found[i].token_ids == want.logprobs[i].token_ids
        assert found[i].logprobs == pytest.approx(want.logprobs[i].logprobs, abs=2e-5)
        assert found[i].rank == want.logprobs[i].rank


def logits_of(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (2 * torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(count))).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_and_drawn_rows_get_the_tokens_of_the_cpu(dtype):
    ways = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"top_k": 5},
        {"top_p": 0.8, "temperature": 0.7},
        {"min_p": 0.1},
    ]
    rows = filled(*(new_row(i, [1, 2], seed=i, **way) for i, way in enumerate(ways)))
    compare(rows, logits_of(5, dtype), [4, 2, 0, 3, 1])
    compare(rows, logits_of(2, dtype), [1, 0])
    compare(rows, logits_of(1, dtype), [0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_edit_gives_the_tokens_of_the_cpu_while_the_text_grows(temperature):
    rows = filled(
        *(
            new_row(i, [1, 4, 4], [9, 4, 30][: i % 4], seed=i, temperature=temperature, **edit)
            for i, edit in enumerate(EDITS)
        ),
        new_row(len(EDITS), [5], seed=99, temperature=temperature),
    )
    order = [8, 3, 0, 1, 2, 5, 4, 7, 6]
    for step in range(4):
        compare(rows, logits_of(9 + step)[:9].to(torch.bfloat16), order)
        rows.append(np.arange(9), np.full(9, [9, 4, 200, 4][step]))


def test_more_edited_rows_than_are_copied_at_once():
    rows = filled(*(new_row(i, [1], seed=i, repetition_penalty=1.5, top_k=4 * (i % 2)) for i in range(37)))
    compare(rows, logits_of(37), list(range(37)))


def test_a_row_taken_by_another_request_forgets_the_text_of_the_first():
    rows = filled(new_row(0, [1, 2, 3], temperature=0.0, repetition_penalty=5.0))
    logits = torch.zeros(1, VOCAB, device=DEVICE)
    logits[0, 3], logits[0, 7] = 3.0, 2.0
    compare(rows, logits, [0])
    rows.release(0)
    rows.add(new_row(0, [7, 8], temperature=0.0, repetition_penalty=5.0))
    compare(rows, logits, [0])


def test_logprobs_are_of_the_unedited_logits_and_as_many_as_wanted():
    wanted = [None, 0, 3, 20, 100, 70]
    rows = filled(
        *(new_row(i, [1], seed=i, logprobs=n, logit_bias={5: 6.0} if i % 2 else None) for i, n in enumerate(wanted))
    )
    compare(rows, logits_of(6), [5, 4, 3, 2, 1, 0])


def test_broken_and_impossible_rows_fail_alone_with_the_sentences_of_the_cpu():
    impossible = {"allowed_token_ids": (2,), "stop_token_ids": (2,), "min_tokens": 3}
    rows = filled(
        new_row(0, [1], temperature=0.0),
        new_row(1, [1], seed=3, logprobs=2),
        new_row(2, [1], **impossible),
        new_row(3, [1], **impossible),
        new_row(4, [1], allowed_token_ids=(5, 6)),
    )
    logits = logits_of(8)
    logits[1, 17] = torch.nan
    logits[3, 18] = torch.inf
    logits[4, 19] = torch.nan
    logits[6] = -torch.inf
    compare(rows, logits, [0, 1, 2, 3, 4, 1, 0, 4])


def test_the_host_must_know_the_text_only_where_edits_read_it():
    rows = filled(*(new_row(i, [1], [2], **edit) for i, edit in enumerate(EDITS)), new_row(8, [1]))
    sampler = DeviceSampler(rows, on_device(rows), DEVICE)
    reading = [i for i in range(9) if sampler.needs_host_tokens(np.array([8, i]))]
    assert reading == [2, 4, 5, 6, 7]
    assert not sampler.needs_host_tokens(np.array([8, 0, 1, 3]))
    for _ in range(3):
        rows.append(np.array([2]), np.array([9]))
    assert not sampler.needs_host_tokens(np.array([2])), "its minimum is reached"


@pytest.mark.parametrize("count", [0, 5, 80])
def test_prompt_logprobs_are_those_of_the_cpu(count):
    logits, tokens = logits_of(4), torch.tensor([5, 299, 0, 17], dtype=torch.int32, device=DEVICE)
    want = token_logprobs(logits.cpu(), tokens.cpu(), [count] * 4)
    for found, wanted in zip(prompt_logprobs(logits, tokens, count), want, strict=True):
        assert (found.token_ids, found.rank) == (wanted.token_ids, wanted.rank)
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=2e-5)
