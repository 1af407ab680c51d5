"""The memory of a GPU, divided before a start by arithmetic, and at the start by what was measured.

An engine's start goes: `estimate` and refuse; load the weights; make the runner; run the largest step once; divide what
is left with `plan_from_measured`; allocate the KV cache; record the CUDA graphs; `MemoryPlan.with_cuda_graphs`.
`pagebox plan` is the first of these.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from dataclasses import dataclass

from appliance.config import MemorySettings, Settings
from appliance.engine.memory.division import Division
from appliance.engine.memory.footprint import Footprint, estimated_footprint, swap_buffer_bytes
from appliance.engine.memory.gpus import Gpu
from appliance.engine.memory.kv_cache_plan import KVCachePlan, model_max_len, requested_length
from appliance.engine.memory.step_shape import StepShape, gpu_step_shape
from appliance.models.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Who gets what of a GPU."""

    total: int  # bytes, as CUDA reports it
    footprint: Footprint
    kv_cache: KVCachePlan
    shape: StepShape
    itemsize: int  # bytes of an element of weights and activations
    limited_by: str  # the setting that the size of the KV cache follows from

    @property
    def free(self) -> int:
        """What is left, mostly by gpu-memory-utilization."""
        return self.total - self.footprint.total - self.kv_cache.total_bytes

    def with_cuda_graphs(self, measured: int) -> MemoryPlan:
        """The same after recording, when it is known how many bytes less are free."""
        return dataclasses.replace(self, footprint=dataclasses.replace(self.footprint, cuda_graphs=measured))


def estimate(facts: ModelFacts, settings: Settings, gpu: Gpu, itemsize: int) -> MemoryPlan:
    """Divide a GPU's memory by arithmetic alone.

    `itemsize` is the bytes of an element of weights and activations. Of an engine that is about to start, `gpu` has the
    total that CUDA reports, and as `other_bytes` what is taken already. With max-model-len auto the context becomes as
    long as fits, and no longer than the model's own. Raises `SettingsRefused` or `StartupError` with the sentence that
    says by how much it does not fit, and which number to change.
    """
    longest = requested_length(settings.model.max_model_len, model_max_len(settings, facts))
    bytes_per_token = facts.kv_bytes_per_token(cache_itemsize(settings.memory, itemsize))

    def division(length: int) -> Division:
        shape = gpu_step_shape(settings, facts, length)
        swap_bytes = swap_buffer_bytes(shape.block_size * bytes_per_token) if settings.memory.swap_space else 0
        footprint = estimated_footprint(facts, shape, gpu, itemsize, length, swap_bytes)
        return Division(settings.memory, gpu.total_bytes, footprint, shape.block_size, bytes_per_token)

    is_auto = settings.model.max_model_len == "auto"
    if is_auto:
        # What the runner keeps of a request grows with its greatest length, so the longest that fits is searched for.
        step = gpu_step_shape(settings, facts, longest).block_size
        lengths = [min(length, longest) for length in range(step, longest + step, step)]
        fitting = bisect_left(lengths, True, key=lambda length: division(length).tokens < length)
        longest = lengths[max(fitting - 1, 0)]
    shape = gpu_step_shape(settings, facts, longest)
    return _planned(division(longest), shape, longest, is_auto, itemsize)


def plan_from_measured(
    estimated: MemoryPlan,
    settings: Settings,
    *,
    total: int,
    free: int,
    reserved: int,
    weights: int,
    state: int,
    activations: int,
) -> MemoryPlan:
    """Divide what is there, once weights are loaded and the largest step has run.

    All in bytes. `total` and `free` are cudaMemGetInfo's, and `reserved` what torch's allocator holds at that moment;
    `weights` is what was allocated after loading, `state` what the runner allocated since, `activations` the peak of
    allocated bytes during the largest step less what was allocated before it. CUDA graphs, which are recorded only when
    the cache is there, are still as estimated. Raises as `estimate` does.
    """
    footprint = Footprint(
        other=total - free - reserved,
        weights=weights,
        state=state,
        activations=activations,
        cuda_graphs=estimated.footprint.cuda_graphs,
    )
    bytes_per_token = estimated.kv_cache.bytes_per_block // estimated.kv_cache.block_size
    division = Division(settings.memory, total, footprint, estimated.kv_cache.block_size, bytes_per_token)
    is_auto = settings.model.max_model_len == "auto"
    return _planned(division, estimated.shape, estimated.kv_cache.max_model_len, is_auto, estimated.itemsize)


def cache_itemsize(memory: MemorySettings, itemsize: int) -> int:
    """Bytes of one element of the KV cache, for a model of `itemsize` bytes an element."""
    return 1 if memory.kv_cache_dtype == "fp8" else itemsize


def _planned(division: Division, shape: StepShape, longest: int, is_auto: bool, itemsize: int) -> MemoryPlan:
    """`longest` is the length that must fit, or, with `is_auto`, the one that need not be exceeded."""
    length = max(min(longest, division.tokens), 1) if is_auto else longest
    division.check(length, itemsize)
    kv_cache = KVCachePlan(division.num_blocks, division.block_size, length, division.bytes_per_block)
    return MemoryPlan(division.total, division.footprint, kv_cache, shape, itemsize, division.limited_by)
