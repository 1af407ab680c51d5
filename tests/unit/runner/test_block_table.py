"""Rows of blocks, slots, and blocks of two sizes."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.runner.block_table import BlockTable


def test_slots_follow_the_blocks_of_the_row():
    table = BlockTable(max_num_seqs=2, max_model_len=12, block_size=4, kernel_block_size=4)
    table.append(1, [7, 3])
    table.append(1, [5])
    slots = table.slots(np.array([1, 1, 1, 1]), np.array([0, 3, 4, 11]))
    assert slots.tolist() == [28, 31, 12, 23]
    assert table.tables(np.array([1])).tolist() == [[7, 3, 5]]


def test_a_cleared_row_starts_again_and_leaves_no_old_block():
    table = BlockTable(2, 12, 4, 4)
    table.append(0, [7, 3, 5])
    table.append(1, [1, 2, 4])
    table.clear(0)
    table.append(0, [6])
    assert table.tables(np.array([0, 1])).tolist() == [[6, 0, 0], [1, 2, 4]]


def test_an_allocation_block_is_several_kernel_blocks():
    table = BlockTable(1, 64, 32, 16)
    table.append(0, [3, 1])
    assert table.tables(np.array([0])).tolist() == [[6, 7, 2, 3]]
    assert table.slots(np.array([0, 0]), np.array([17, 33])).tolist() == [7 * 16 + 1, 2 * 16 + 1]


def test_block_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="24 is not a multiple"):
        BlockTable(1, 64, 24, 16)
