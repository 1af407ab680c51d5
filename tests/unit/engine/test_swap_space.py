"""Swap space that cannot be, or cannot be used, is refused in a sentence that says what to change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from appliance.config import MemorySettings, SchedulingSettings, Settings
from appliance.engine.memory.swap_space import num_host_blocks, swap_space_bytes
from appliance.engine.startup_errors import SettingsRefused, StartupError

GIB = 2**30


def settings(preemption_mode: Any = "recompute", **memory: Any) -> Settings:
    return dataclasses.replace(
        Settings(),
        memory=dataclasses.replace(MemorySettings(), **memory),
        scheduling=dataclasses.replace(SchedulingSettings(), preemption_mode=preemption_mode),
    )


def test_none_is_wanted_unless_set() -> None:
    assert swap_space_bytes(settings(), -1) == 0
    assert num_host_blocks(0, 4096) == 0


def test_it_is_divided_into_whole_blocks() -> None:
    swap_bytes = swap_space_bytes(settings("swap", swap_space=1.5), 2 * GIB)
    assert swap_bytes == 3 * GIB // 2
    assert num_host_blocks(swap_bytes, 1000) == swap_bytes // 1000


def test_more_than_the_host_has_is_refused_with_the_number_that_fits() -> None:
    with pytest.raises(StartupError, match=r"asks for 8.00 GiB .* only 5.55 GiB .* 2.45 GiB too little.* to 5.5 or"):
        swap_space_bytes(settings(swap_space=8), int(5.55 * GIB))


def test_preemption_by_swap_needs_a_space_to_swap_to() -> None:
    with pytest.raises(SettingsRefused, match="nowhere to swap to; set swap-space"):
        swap_space_bytes(settings("swap"), 8 * GIB)


def test_it_needs_the_prefix_cache() -> None:
    with pytest.raises(SettingsRefused, match=r"swap-space is 2, .* set enable-prefix-caching, or swap-space to 0"):
        swap_space_bytes(settings(swap_space=2, enable_prefix_caching=False), 8 * GIB)


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(SettingsRefused, match=r"1.0 MiB, less than one KV block of 2.0 MiB"):
        num_host_blocks(2**20, 2**21)
