"""How many blocks the KV cache gets, and how long a context may be: arithmetic, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config import MemorySettings, Settings
from appliance.engine.memory.wording import size
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.models.facts import ModelFacts

# On the CPU the cache shares the memory with everything else on the machine, and a prefix cache beyond this many bytes
# is rarely read again before it is evicted. Whoever knows better sets kv-cache-memory.
DEFAULT_CPU_CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True)
class KVCachePlan:
    num_blocks: int
    block_size: int  # tokens
    max_model_len: int  # tokens
    bytes_per_block: int

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block


def plan_kv_cache(
    memory: MemorySettings,
    *,
    block_size: int,
    bytes_per_token: int,
    model_max_len: int,
    max_model_len: int | str | None,
    usable_bytes: int,
) -> KVCachePlan:
    """Divide the host's memory into blocks and check that one request of full length fits.

    `bytes_per_token` is what the keys and values of one token take over all layers, `model_max_len` the longest context
    that the model is made for, `max_model_len` the setting (a number, "auto", or None for the model's own), and
    `usable_bytes` what the cache may take when no setting says a number. Raises `SettingsRefused` when settings and
    model contradict each other, `StartupError` when it is the machine's memory that is too small at the moment.
    """
    bytes_per_block = block_size * bytes_per_token
    given = blocks_that_settings_give(memory, bytes_per_block)
    num_blocks, source = given or (usable_bytes // bytes_per_block, "the memory that is free now")
    capacity = num_blocks * block_size
    wanted = requested_length(max_model_len, model_max_len)
    if max_model_len == "auto":
        wanted = min(wanted, capacity)
    if wanted > capacity or num_blocks < 1:
        wanted = wanted or model_max_len
        needed = -(-wanted // block_size)
        error = SettingsRefused if given else StartupError
        raise error(
            f"One request of {wanted} tokens (max-model-len) needs {size(needed * bytes_per_block)} of KV cache, but "
            f"{source} comes to {size(num_blocks * bytes_per_block)}, enough for {capacity} tokens; "
            + _advice(memory, capacity, needed, bytes_per_block)
        )
    return KVCachePlan(num_blocks, block_size, wanted, bytes_per_block)


def blocks_that_settings_give(memory: MemorySettings, bytes_per_block: int) -> tuple[int, str] | None:
    """The number of blocks and the setting that says it, where one does."""
    if memory.num_gpu_blocks_override is not None:
        return memory.num_gpu_blocks_override, "num-gpu-blocks-override"
    if memory.kv_cache_memory is not None:
        return memory.kv_cache_memory // bytes_per_block, "kv-cache-memory"
    return None


def model_max_len(settings: Settings, facts: ModelFacts) -> int:
    """The longest context, in tokens, that the model computes right with these settings."""
    longest: int = facts.max_model_len
    windows = [window for window in facts.sliding_windows if window is not None]
    if settings.features.disable_sliding_window and windows:
        longest = min(longest, *windows)  # as long as nothing has left a window, it is full attention
    return longest


def requested_length(max_model_len: int | str | None, model_max_len: int) -> int:
    """The context length that the setting asks for; the model's own for "auto" and None. Raises `SettingsRefused`."""
    if not isinstance(max_model_len, int):
        return model_max_len
    if max_model_len > model_max_len:
        raise SettingsRefused(
            f"max-model-len is {max_model_len}, but the model is made for at most {model_max_len} tokens; "
            f"set max-model-len to {model_max_len} or less, or stretch the model with rope_parameters in hf-overrides"
        )
    return max_model_len


def _advice(memory: MemorySettings, capacity: int, blocks: int, bytes_per_block: int) -> str:
    shorter = f"set max-model-len to {capacity} or less" if capacity > 0 else "free some memory"
    if memory.num_gpu_blocks_override is not None:
        return f"{shorter}, or num-gpu-blocks-override to {blocks} or more"
    return f"{shorter}, or kv-cache-memory to {blocks * bytes_per_block} or more"
