"""A step's inputs are made on the device from what it remembers of each request."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.triton_kernels.step_inputs import append_tokens, decode_inputs, token_inputs

STATE_ROWS, MAX_LEN = 300, 70


class State:
    def __init__(self, block_size: int) -> None:
        columns = -(-MAX_LEN // block_size)
        self.block_table = torch.randint(1, 2**31 - 1, (STATE_ROWS, columns), dtype=torch.int32, device=DEVICE)
        self.token_ids = torch.randint(200_000, (STATE_ROWS, MAX_LEN), dtype=torch.int32, device=DEVICE)
        self.last_token = torch.randint(200_000, (STATE_ROWS,), device=DEVICE)
        self.num_tokens = torch.randint(1, MAX_LEN + 1, (STATE_ROWS,), dtype=torch.int32, device=DEVICE)
        self.num_tokens[-1] = 0  # a row that stands for padding


def some_rows(count: int) -> torch.Tensor:
    """Distinct rows, some of them padding of either kind."""
    rows = torch.randperm(STATE_ROWS - 1, device=DEVICE)[:count].int()
    if count > 2:
        rows[1], rows[2] = -1, STATE_ROWS - 1
    return rows


def poisoned(count: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.full((count,), -77, dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("count", [1, 5, 128, 200])
@pytest.mark.parametrize("block_size", [16, 32])
def test_decode_inputs_are_those_of_each_newest_token(count, block_size):
    state, rows = State(block_size), some_rows(count)
    got = poisoned(count), poisoned(count), poisoned(count), poisoned(count, torch.int32)
    decode_inputs(rows, state.last_token, state.num_tokens, state.block_table, block_size, *got)
    want = reference.decode_inputs(rows, state.last_token, state.num_tokens, state.block_table, block_size)
    assert [v.tolist() for v in got] == [v.tolist() for v in want]
    if count > 2:
        assert [v[1:3].tolist() for v in got] == [[0, 0], [0, 0], [-1, -1], [0, 0]]


@pytest.mark.parametrize("count", [1, 7, 300])
def test_token_inputs_are_read_at_any_positions(count):
    state = State(16)
    rows = torch.randint(-1, STATE_ROWS, (count,), dtype=torch.int32, device=DEVICE)
    positions = torch.randint(MAX_LEN, (count,), device=DEVICE)
    got = poisoned(count), poisoned(count)
    token_inputs(rows, positions, state.token_ids, state.block_table, 16, *got)
    want = reference.token_inputs(rows, positions, state.token_ids, state.block_table, 16)
    assert [v.tolist() for v in got] == [v.tolist() for v in want]


@pytest.mark.parametrize("keep_ids", [False, True])
@pytest.mark.parametrize("count", [1, 200])
def test_sampled_tokens_are_remembered_and_padding_is_not(count, keep_ids):
    state, rows = State(16), some_rows(count)
    state.num_tokens[rows[0]] = MAX_LEN  # full
    sampled = torch.randint(200_000, (count,), device=DEVICE)
    got = [state.last_token.clone(), state.num_tokens.clone(), state.token_ids.clone()]
    want = [v.clone() for v in got]
    append_tokens(rows, sampled, got[0], got[1], got[2] if keep_ids else None)
    reference.append_tokens(rows, sampled, want[0], want[1], want[2] if keep_ids else None)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert (got[1] - state.num_tokens).sum() == count - (2 if count > 2 else 0)
