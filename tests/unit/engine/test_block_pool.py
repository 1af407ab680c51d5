from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.engine.kv_cache.block_pool import BlockPool


def test_blocks_are_reused_least_recently_released_first() -> None:
    pool = BlockPool(4)
    assert pool.take(4) == [0, 1, 2, 3]
    for block in (2, 0, 3, 1):
        pool.release(block, reuse_last=True)
    assert pool.take(4) == [2, 0, 3, 1]


def test_a_block_not_worth_keeping_is_reused_before_all_others() -> None:
    pool = BlockPool(4)
    pool.take(2)
    pool.release(0, reuse_last=True)
    pool.release(1, reuse_last=False)
    assert pool.free_blocks() == [1, 2, 3, 0]


def test_sharing_a_free_block_takes_it_out_of_the_middle_of_the_free_list() -> None:
    pool = BlockPool(4)
    pool.share(2)
    assert pool.free_blocks() == [0, 1, 3]
    assert pool.num_free == 3
    pool.share(2)
    pool.release(2, reuse_last=True)
    assert pool.ref_count(2) == 1
    assert pool.num_free == 3
    pool.release(2, reuse_last=True)
    assert pool.free_blocks() == [0, 1, 3, 2]


def test_misuse_is_an_error_and_not_a_broken_list() -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="3 blocks asked for, 2 are free"):
        pool.take(3)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.release(0, reuse_last=True)
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(0)
    assert pool.free_blocks() == [0, 1]


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.booleans()), max_size=60))
def test_the_pool_behaves_like_a_plain_list_of_free_blocks(
    num_blocks: int, operations: list[tuple[int, int, bool]]
) -> None:
    pool = BlockPool(num_blocks)
    free = list(range(num_blocks))
    references = [0] * num_blocks
    for kind, number, flag in operations:
        block = number % num_blocks
        if kind == 0 and number <= len(free):
            taken = pool.take(number)
            assert taken == free[:number]
            free = free[number:]
            for b in taken:
                references[b] = 1
        elif kind == 1:
            pool.share(block)
            references[block] += 1
            if block in free:
                free.remove(block)
        elif kind == 2 and references[block]:
            pool.release(block, reuse_last=flag)
            references[block] -= 1
            if references[block] == 0:
                free.insert(len(free) if flag else 0, block)
        assert pool.free_blocks() == free
        assert pool.num_free == len(free)
        assert [pool.ref_count(b) for b in range(num_blocks)] == references
