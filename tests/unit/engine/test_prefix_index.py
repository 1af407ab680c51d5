from __future__ import annotations

from appliance.engine.kv_cache.prefix_index import PrefixIndex, block_hash, root_hash


def test_the_address_of_a_block_depends_on_tokens_their_order_the_past_and_the_salt() -> None:
    root = root_hash("")
    addresses = {
        block_hash(root, [1, 2]),
        block_hash(root, [2, 1]),
        block_hash(root, [1, 2, 0]),
        block_hash(root, [258]),  # the bytes of [2, 1] in another width
        block_hash(root_hash("tenant"), [1, 2]),
        block_hash(block_hash(root, [1, 2]), [1, 2]),
    }
    assert len(addresses) == 6
    assert block_hash(root, [1, 2]) in addresses


def test_the_first_block_with_a_content_keeps_the_address() -> None:
    index = PrefixIndex(4)
    assert index.add(b"a", 0)
    assert not index.add(b"a", 1)
    assert index.find(b"a") == 0
    assert 0 in index
    assert 1 not in index


def test_forgetting_a_block_frees_its_address_and_leaves_others() -> None:
    index = PrefixIndex(4)
    index.add(b"a", 0)
    index.add(b"b", 1)
    index.forget(0)
    index.forget(0)
    index.forget(3)
    assert index.find(b"a") is None
    assert index.find(b"b") == 1
    assert index.add(b"a", 2)
    assert len(index) == 2


def test_a_cleared_index_finds_nothing() -> None:
    index = PrefixIndex(2)
    index.add(b"a", 0)
    index.clear()
    assert index.find(b"a") is None
    assert 0 not in index
    assert len(index) == 0
