"""A step's inputs are made on the device from what it remembers of each request."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance_kernels import reference
from appliance_kernels.triton_kernels.step_inputs import (
    RECORD,
    append_tokens,
    decode_inputs,
    gather_block_tables,
    write_blocks,
    write_rows,
)

STATE_ROWS, MAX_LEN = 300, 70


class State:
    def __init__(self, block_size: int) -> None:
        columns = -(-MAX_LEN // block_size)
        self.block_table = torch.randint(1, 2**31 - 1, (STATE_ROWS, columns), dtype=torch.int32, device=DEVICE)
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


@pytest.mark.parametrize("count", [1, 200])
def test_sampled_tokens_are_remembered_and_padding_is_not(count):
    state, rows = State(16), some_rows(count)
    sampled = torch.randint(200_000, (count,), device=DEVICE)
    got = [state.last_token.clone(), state.num_tokens.clone()]
    want = [v.clone() for v in got]
    append_tokens(rows, sampled, *got)
    reference.append_tokens(rows, sampled, *want)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert (got[1] - state.num_tokens).sum() == count - (2 if count > 2 else 0)


@pytest.mark.parametrize("count", [1, 150])
def test_requests_take_rows_with_all_that_is_known_of_them(count):
    rows = torch.randperm(STATE_ROWS)[:count]
    integers = torch.randint(-(2**31), 2**31 - 1, (count, len(RECORD)), dtype=torch.int32)
    floats = torch.rand(count, 3)
    integers[:, RECORD.index("row")] = rows
    for column, name in enumerate(("temperature", "top_p", "min_p")):
        integers[:, RECORD.index(name)] = floats[:, column].view(torch.int32)
    seeds = torch.randint(-(2**63), 2**63 - 1, (count,))
    integers[:, RECORD.index("seed_low")] = (seeds & 0xFFFFFFFF).to(torch.int32)
    integers[:, RECORD.index("seed_high")] = (seeds >> 32).to(torch.int32)
    last_token, num_tokens, top_k = (poisoned(STATE_ROWS, torch.int32) for _ in range(3))
    temperature, top_p, min_p = (torch.full((STATE_ROWS,), -1.0, device=DEVICE) for _ in range(3))
    seed = poisoned(STATE_ROWS)
    write_rows(integers.to(DEVICE), last_token, num_tokens, temperature, top_k, top_p, min_p, seed)
    for got, want in (
        (last_token, integers[:, RECORD.index("last_token")]),
        (num_tokens, integers[:, RECORD.index("num_tokens")]),
        (top_k, integers[:, RECORD.index("top_k")]),
        (temperature, floats[:, 0]),
        (top_p, floats[:, 1]),
        (min_p, floats[:, 2]),
        (seed, seeds),
    ):
        assert torch.equal(got[rows.to(DEVICE)].cpu(), want)
        others = torch.ones(STATE_ROWS, dtype=torch.bool)
        others[rows] = False
        assert (got.cpu()[others] == (-1.0 if got.is_floating_point() else -77)).all()


@pytest.mark.parametrize("count", [1, 300])
def test_block_table_entries_change_where_they_are_told_to(count):
    table = torch.randint(1000, (STATE_ROWS, 9), dtype=torch.int32, device=DEVICE)
    places = torch.randperm(table.numel(), device=DEVICE)[:count].int()
    blocks = torch.randint(1000, 2000, (count,), dtype=torch.int32, device=DEVICE)
    want = table.clone()
    want.view(-1)[places.long()] = blocks
    write_blocks(places, blocks, table)
    assert torch.equal(table, want)


def test_block_tables_of_a_batch_are_gathered_as_far_as_its_lengths_reach():
    table = torch.randint(2**31 - 1, (STATE_ROWS, 300), dtype=torch.int32, device=DEVICE)
    rows = torch.tensor([5, -1, 299, 0, 7], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor([1, 50, 4800, 17, 0], dtype=torch.int32, device=DEVICE)
    out = torch.full((5, 300), -77, dtype=torch.int32, device=DEVICE)
    gather_block_tables(rows, lengths, table, 16, out)
    want = torch.full_like(out, -77)
    for i, (row, blocks) in enumerate([(5, 1), (-1, 0), (299, 300), (0, 2), (7, 0)]):
        want[i, :blocks] = table[row, :blocks]
    assert torch.equal(out, want)
