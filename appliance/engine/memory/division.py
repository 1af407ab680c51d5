"""A GPU's memory divided between everything else and the KV cache, and the sentence when it is too small."""

from __future__ import annotations

import math
from dataclasses import dataclass

from appliance.config import MemorySettings
from appliance.engine.memory.footprint import Footprint
from appliance.engine.memory.kv_cache_plan import blocks_that_settings_give
from appliance.engine.memory.wording import size
from appliance.engine.startup_errors import SettingsRefused, StartupError

# What is beyond this outside of our allocator is not the driver's: another program, which may end.
DRIVER_AT_MOST = 3 * 2**29
# No advice goes beyond this share of the memory, as allocation in pieces never uses the last of it.
UTILIZATION_AT_MOST = 0.97


@dataclass(frozen=True, slots=True)
class Division:
    """`total` bytes, less the footprint, in blocks of the KV cache."""

    memory: MemorySettings
    total: int  # bytes
    footprint: Footprint
    block_size: int  # tokens
    bytes_per_token: int

    @property
    def bytes_per_block(self) -> int:
        return self.block_size * self.bytes_per_token

    @property
    def allowed(self) -> int:
        """What gpu-memory-utilization lets the engine and everything beside it have."""
        return int(self.total * self.memory.gpu_memory_utilization)

    @property
    def num_blocks(self) -> int:
        given = blocks_that_settings_give(self.memory, self.bytes_per_block)
        return given[0] if given else max(0, self.allowed - self.footprint.total) // self.bytes_per_block

    @property
    def tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def limited_by(self) -> str:
        """The setting that says how much the cache gets."""
        given = blocks_that_settings_give(self.memory, self.bytes_per_block)
        return given[1] if given else "gpu-memory-utilization"

    def check(self, length: int, itemsize: int) -> None:
        """Raise `SettingsRefused` unless all fits, and with it one request of `length` tokens, the max-model-len.

        `StartupError`, after which a later start may do better, where other programs hold memory.
        `itemsize` is the bytes of an element of the weights.
        """
        problem = self._too_much() or self._too_little(itemsize) or self._too_short(length, itemsize)
        if problem:
            raise (StartupError if self.footprint.other > DRIVER_AT_MOST else SettingsRefused)(problem)

    def _too_much(self) -> str:
        """Where a setting says how large the cache is, more than there is."""
        left = self.total - self.footprint.total
        asked = self.num_blocks * self.bytes_per_block
        if self.limited_by == "gpu-memory-utilization" or left <= 0 or asked <= left:
            return ""
        most = left // self.bytes_per_block
        value = most if self.limited_by == "num-gpu-blocks-override" else most * self.bytes_per_block
        return (
            f"{self.limited_by} asks for {size(asked)} of KV cache, but beside {self._parts()} only {size(left)} of "
            f"the GPU's {size(self.total)} are left, {size(asked - left)} too little; "
            f"set {self.limited_by} to {value} or less"
        )

    def _too_little(self, itemsize: int) -> str:
        """Where nothing is left for the cache."""
        allowed = self.allowed if self.limited_by == "gpu-memory-utilization" else self.total
        missing = self.footprint.total + self.bytes_per_block - allowed
        if missing <= 0:
            return ""
        share = "" if allowed == self.total else f"gpu-memory-utilization {self.memory.gpu_memory_utilization:g} of "
        return (
            f"The model does not fit: {self._parts()}, without any KV cache, are {size(missing)} too much for "
            f"{share}the GPU's {size(self.total)}; {self._advice([], self.bytes_per_block, itemsize)}"
        )

    def _too_short(self, length: int, itemsize: int) -> str:
        """Where one request of full length has no room."""
        if length <= self.tokens:
            return ""
        needed = -(-length // self.block_size) * self.bytes_per_block
        has = self.num_blocks * self.bytes_per_block
        source = self.limited_by
        if source == "gpu-memory-utilization":
            share = f"{self.memory.gpu_memory_utilization:g} of {size(self.total)}"
            source = f"gpu-memory-utilization ({share}) leaves {size(has)} beside {self._parts()}"
        else:
            source = f"{source} comes to {size(has)}"
        shorter = [f"max-model-len to {self.tokens} or less (or auto)"] if self.tokens else []
        return (
            f"One request of {length} tokens (max-model-len) needs {size(needed)} of KV cache, but {source}: "
            f"{size(needed - has)} too little; {self._advice(shorter, needed, itemsize)}"
        )

    def _advice(self, choices: list[str], cache_bytes: int, itemsize: int) -> str:
        """What to change so that `cache_bytes` fit, after the given `choices`."""
        if self.limited_by == "num-gpu-blocks-override":
            choices = [*choices, f"num-gpu-blocks-override to {cache_bytes // self.bytes_per_block} or more"]
        elif self.limited_by == "kv-cache-memory":
            choices = [*choices, f"kv-cache-memory to {cache_bytes} or more"]
        else:
            share = math.ceil((self.footprint.total + cache_bytes) / self.total * 100) / 100
            if share <= UTILIZATION_AT_MOST:
                choices = [*choices, f"gpu-memory-utilization to {share:g} or more"]
        if itemsize == 4:
            choices = [*choices, "dtype to bfloat16"]
        if not choices:
            return "take a smaller model or a GPU with more memory"
        return f"set {', or '.join(choices)}"

    def _parts(self) -> str:
        f = self.footprint
        working = f.activations + f.cuda_graphs + f.state
        other = "other programs" if f.other > DRIVER_AT_MOST else "the driver"
        return f"{size(f.weights)} of weights, {size(working)} of working memory and {size(f.other)} of {other}"
