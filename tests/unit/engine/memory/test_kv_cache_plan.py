from __future__ import annotations

from typing import Any

import pytest

from appliance.config import MemorySettings
from appliance.engine.memory.kv_cache_plan import KVCachePlan, plan_kv_cache
from appliance.engine.startup_errors import SettingsRefused, StartupError

MIB = 2**20


def plan(memory: MemorySettings | None = None, **changes: Any) -> KVCachePlan:
    arguments: dict[str, Any] = {
        "block_size": 32,
        "bytes_per_token": 1024,
        "model_max_len": 2048,
        "max_model_len": None,
        "usable_bytes": 64 * MIB,
    }
    return plan_kv_cache(memory or MemorySettings(), **(arguments | changes))


def test_the_cache_takes_what_may_be_used() -> None:
    assert plan() == KVCachePlan(num_blocks=2048, block_size=32, max_model_len=2048, bytes_per_block=32 * 1024)


def test_kv_cache_memory_is_rounded_down_to_whole_blocks() -> None:
    assert plan(MemorySettings(kv_cache_memory=3 * MIB + 1000)).num_blocks == 96


def test_a_number_of_blocks_beats_the_memory_settings() -> None:
    assert plan(MemorySettings(kv_cache_memory=MIB, num_gpu_blocks_override=70)).num_blocks == 70


def test_auto_takes_the_longest_context_that_fits() -> None:
    assert plan(max_model_len="auto", usable_bytes=MIB).max_model_len == 1024
    assert plan(max_model_len="auto").max_model_len == 2048


def test_a_cache_that_settings_make_too_small_says_which_number_to_change() -> None:
    with pytest.raises(
        SettingsRefused, match=r"2048 tokens.*2\.0 MiB.*kv-cache-memory.*1\.0 MiB.*1024 or less.*2097152"
    ):
        plan(MemorySettings(kv_cache_memory=MIB))
    with pytest.raises(SettingsRefused, match=r"num-gpu-blocks-override to 64 or more"):
        plan(MemorySettings(num_gpu_blocks_override=63))


def test_too_little_free_memory_may_be_better_next_time() -> None:
    with pytest.raises(StartupError, match="free now") as caught:
        plan(usable_bytes=MIB)
    assert not isinstance(caught.value, SettingsRefused)


def test_no_room_at_all_is_an_error_even_with_auto() -> None:
    with pytest.raises(StartupError, match="2048 tokens"):
        plan(max_model_len="auto", usable_bytes=100)


def test_a_context_longer_than_the_model_is_made_for_is_refused() -> None:
    with pytest.raises(SettingsRefused, match=r"4096.*2048"):
        plan(max_model_len=4096)
