from __future__ import annotations

from collections.abc import Sequence

import pytest

from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.request import Request, RequestError
from tests.unit.engine.null_model import make_request


def request_of(prompt: Sequence[int], *, max_model_len: int = 100, **fields: object) -> Request:
    added = make_request(prompt, **fields)
    return Request.from_wire(added, arrival_index=0, eos_token_ids=frozenset(), max_model_len=max_model_len)


def compute(cache: KVCacheManager, request: Request, num_tokens: int) -> None:
    assert cache.grow(request, num_tokens) is not None
    cache.promise(request, num_tokens)


def test_full_blocks_are_found_by_a_request_with_the_same_beginning() -> None:
    cache = KVCacheManager(16, 4)
    first = request_of(range(10))
    compute(cache, first, 10)
    found = cache.find_prefix(request_of([*range(8), 99, 98, 97]))
    assert found.block_ids == first.block_ids[:2]
    assert found.num_free == 0


def test_a_full_hit_leaves_the_last_token_to_compute() -> None:
    cache = KVCacheManager(16, 4)
    first = request_of(range(8))
    compute(cache, first, 8)
    assert cache.find_prefix(request_of(range(8))).block_ids == first.block_ids[:1]
    assert cache.find_prefix(request_of(range(9))).block_ids == first.block_ids[:2]


def test_blocks_are_not_found_under_another_salt() -> None:
    cache = KVCacheManager(16, 4)
    compute(cache, request_of(range(10), cache_salt="a"), 10)
    assert cache.find_prefix(request_of(range(10), cache_salt="b")).block_ids == []
    assert len(cache.find_prefix(request_of(range(10), cache_salt="a")).block_ids) == 2


def test_blocks_of_a_finished_request_are_found_and_taken_off_the_free_list() -> None:
    cache = KVCacheManager(4, 4)
    first = request_of(range(10))
    compute(cache, first, 10)
    held = first.block_ids
    assert cache.free(first) == 3
    assert cache.num_free_blocks == 4

    second = request_of(range(10))
    found = cache.find_prefix(second)
    assert found.block_ids == held[:2]
    assert found.num_free == 2
    cache.take_prefix(second, found)
    assert cache.num_free_blocks == 2
    assert cache.usage == pytest.approx(0.5)


def test_the_end_of_a_prefix_is_overwritten_before_its_beginning() -> None:
    cache = KVCacheManager(4, 4)
    first = request_of(range(14))
    compute(cache, first, 14)
    cache.free(first)
    # 4 blocks: the partial one is worth nothing, so it goes first, then the last full one.
    other = request_of([50, 51, 52, 53, 54])
    compute(cache, other, 5)
    assert len(cache.find_prefix(request_of(range(14))).block_ids) == 2


def test_a_block_that_nobody_can_find_is_reused_before_all_others() -> None:
    cache = KVCacheManager(8, 4)
    first = request_of(range(6))
    compute(cache, first, 6)
    partial = first.block_ids[1]
    cache.free(first)
    assert cache.grow(request_of(range(50, 60)), 1) == [partial]


def test_a_reused_block_is_no_longer_found_under_its_old_content() -> None:
    cache = KVCacheManager(2, 4)
    first = request_of(range(6))
    compute(cache, first, 6)
    cache.free(first)
    other = request_of([50, 51, 52, 53, 54])
    compute(cache, other, 5)
    assert cache.find_prefix(request_of(range(6))).block_ids == []
    assert cache.find_prefix(request_of([50, 51, 52, 53, 1])).block_ids == other.block_ids[:1]


def test_growing_beyond_the_free_blocks_changes_nothing() -> None:
    cache = KVCacheManager(2, 4)
    request = request_of(range(20))
    assert cache.grow(request, 12) is None
    assert request.block_ids == []
    assert cache.grow(request, 8) == [0, 1]
    assert cache.grow(request, 8) == []
    assert cache.grow(request, 9) is None


def test_a_withdrawn_promise_is_not_found() -> None:
    cache = KVCacheManager(8, 4)
    first = request_of(range(10))
    cache.grow(first, 10)
    promised = cache.promise(first, 10)
    assert promised == first.block_ids[:2]
    cache.withdraw(promised)
    assert cache.find_prefix(request_of(range(10))).block_ids == []


def test_without_prefix_caching_nothing_is_found() -> None:
    cache = KVCacheManager(8, 4, enable_prefix_caching=False)
    compute(cache, request_of(range(10)), 10)
    assert cache.find_prefix(request_of(range(10))).block_ids == []


def test_a_reset_forgets_content_and_keeps_blocks_with_their_holders() -> None:
    cache = KVCacheManager(8, 4)
    first = request_of(range(10))
    compute(cache, first, 10)
    cache.reset_prefix_cache()
    assert cache.find_prefix(request_of(range(10))).block_ids == []
    assert cache.num_free_blocks == 5
    cache.free(first)
    assert cache.num_free_blocks == 8


def test_a_request_larger_than_the_cache_is_told_both_numbers() -> None:
    cache = KVCacheManager(4, 4)
    with pytest.raises(
        RequestError, match=r"10 prompt tokens and 8 generated ones need 5 .* the cache has 4"
    ) as caught:
        cache.check_fits(request_of(range(10), max_tokens=8))
    assert caught.value.param == "max_tokens"
    cache.check_fits(request_of(range(10), max_tokens=7))


@pytest.mark.parametrize("common", [0, 3, 4, 5, 8, 12, 13, 28])
@pytest.mark.parametrize("other_salt", [False, True])
def test_what_a_prompt_has_in_common_with_the_one_before_it_changes_no_hash(common: int, other_salt: bool) -> None:
    first = request_of(range(30), cache_salt="a")
    second_prompt = [*range(common), *range(100, 126)]
    salt = "b" if other_salt else "a"
    alone, beside = KVCacheManager(32, 4), KVCacheManager(32, 4)
    compute(beside, first, 30)
    beside.find_prefix(request_of(range(30), cache_salt="a"))
    hashes = []
    for cache in (alone, beside):
        request = request_of(second_prompt, cache_salt=salt)
        cache.find_prefix(request)
        compute(cache, request, len(second_prompt))
        hashes.append(request.block_hashes)
    assert hashes[0] == hashes[1]
