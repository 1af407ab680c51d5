"""Blocks of all layers are gathered into one buffer and scattered from it."""

from __future__ import annotations

import pytest
import torch

from tests.unit.kernels.triton_device import DEVICE  # isort: skip  # before the kernels

from appliance_kernels.triton_kernels.block_copy import gather_blocks, scatter_blocks


def caches_of(layers: int, words: int, num_blocks: int = 9) -> list[torch.Tensor]:
    return [torch.randint(2**62, (num_blocks, words), device=DEVICE) for _ in range(layers)]


def addresses(caches: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([cache.data_ptr() for cache in caches], device=DEVICE)


@pytest.mark.parametrize("words", [2, 1000, 1024, 2050])
@pytest.mark.parametrize("blocks", [[4], [8, 0, 3, 5]])
def test_gathered_blocks_are_those_of_every_layer_in_order(words: int, blocks: list[int]) -> None:
    caches = caches_of(3, words)
    buffer = torch.full((len(blocks) + 2, 3, words), -77, device=DEVICE)
    gather_blocks(addresses(caches), torch.tensor(blocks, device=DEVICE), buffer)
    assert torch.equal(buffer[: len(blocks)], torch.stack([cache[blocks] for cache in caches], 1))
    assert (buffer[len(blocks) :] == -77).all()


@pytest.mark.parametrize("words", [2, 1000, 1024, 2050])
@pytest.mark.parametrize("blocks", [[4], [8, 0, 3, 5]])
def test_scattered_blocks_change_no_other(words: int, blocks: list[int]) -> None:
    caches = caches_of(3, words)
    expected = [cache.clone() for cache in caches]
    buffer = torch.randint(2**62, (len(blocks) + 2, 3, words), device=DEVICE)
    scatter_blocks(addresses(caches), torch.tensor(blocks, device=DEVICE), buffer)
    for layer, cache in enumerate(expected):
        cache[blocks] = buffer[: len(blocks), layer]
    assert all(torch.equal(cache, wanted) for cache, wanted in zip(caches, expected, strict=True))


def test_no_blocks_are_no_work() -> None:
    caches = caches_of(1, 8)
    buffer = torch.full((1, 1, 8), -77, device=DEVICE)
    gather_blocks(addresses(caches), torch.empty(0, dtype=torch.int64, device=DEVICE), buffer)
    assert (buffer == -77).all()
