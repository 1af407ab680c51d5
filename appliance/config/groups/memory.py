"""How much memory the KV cache gets, and how it is divided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.config.declaration import setting


@dataclass(frozen=True)
class MemorySettings:
    """How much memory the KV cache gets, and how it is divided."""

    gpu_memory_utilization: float = setting(
        0.9,
        purpose="Fraction of the GPU's memory that may be in use once the engine runs: weights, activations, CUDA "
        "graphs, KV cache, the driver, and what other programs hold. The KV cache takes what the others leave of it, "
        "measured at the start, where the engine logs who has how much; pagebox plan says the same without a GPU. On "
        "the CPU the cache gets this fraction of the host memory that is free beside the weights, and at most 4 GiB, "
        "as other programs live there too; kv-cache-memory goes beyond that.",
        memory="Sets the size of the KV cache.",
        throughput="More cache, more requests at once and more prefixes kept. What is left is for memory that the "
        "allocator cannot fill without gaps, and for programs that come later: too high ends in out-of-memory errors.",
        typical="0.85 to 0.95 on a GPU of its own.",
        formula="KV cache = gpu-memory-utilization × GPU memory − weights − activations − CUDA graphs − request state "
        "− driver and other programs (GPU), or min(4 GiB, gpu-memory-utilization × (free host memory − weights)) (CPU)",
        above=0,
        maximum=1,
    )
    kv_cache_memory: int | None = setting(
        None,
        purpose="Size of the KV cache in bytes, instead of a fraction of the memory: exact, and the same at every "
        "start. More than is left beside everything else fails at the start, with the most that fits.",
        memory="Exactly this much, rounded down to whole blocks; taken at the start, never grown.",
        throughput="As gpu-memory-utilization: more cache, more requests at once.",
        typical="1GiB to 8GiB on the CPU; on a GPU what an earlier start logged, or pagebox plan prints.",
        formula="tokens that fit = kv-cache-memory ÷ (2 × layers × KV heads × head size × bytes per element)",
        when_unset="Computed from gpu-memory-utilization.",
        minimum=1,
        unit="bytes",
    )
    block_size: int | None = setting(
        None,
        purpose="Tokens in one block of the KV cache, the unit that is allocated, shared and evicted. A power of two "
        "from 8 to 256.",
        memory="On average half a block of each request is empty.",
        throughput="Large blocks make block tables short and reading contiguous; small ones let more prefixes be "
        "shared, as only full blocks are.",
        typical="16 on a GPU, 32 on the CPU.",
        formula="block bytes = block-size × 2 × layers × KV heads × head size × bytes per element",
        when_unset="16 on a GPU, 32 on the CPU.",
        minimum=8,
        maximum=256,
    )
    kv_cache_dtype: Literal["auto", "fp8"] = setting(
        "auto",
        purpose="Number format of the KV cache; auto is the model's dtype, fp8 is E4M3 (3 bits of mantissa, up to "
        "±448) without scales.",
        memory="fp8 halves the cache of a 16-bit model, so twice as many tokens fit.",
        throughput="On a GPU fp8 helps long contexts, where reading the cache is the limit; on the CPU it saves memory "
        "only, and attention takes longer. Costs some accuracy.",
        typical="auto.",
    )
    swap_space: float = setting(
        0.0,
        purpose="GiB of host memory for a second tier of the prefix cache: KV blocks are copied to it before they are "
        "evicted, and come back when a request begins with the same tokens.",
        memory="Taken from the host at the start, pinned; and at most 256 MiB of the GPU's.",
        throughput="A prefix that no longer fits on the GPU comes back by a copy over PCIe, beside the running step, "
        "instead of a second prefill.",
        typical="0; 4 to 64 where conversations return or prompts share more than the GPU holds.",
        formula="tokens = swap-space × 2³⁰ ÷ KV bytes per token",
        minimum=0,
    )
    cpu_offload_gb: float = setting(
        0.0,
        purpose="GiB of weights kept in host memory and streamed to the GPU at each step.",
        memory="Frees that much GPU memory, takes it from the host.",
        throughput="Costly: each step moves them over PCIe (about 0.04 s per GiB).",
        typical="0.",
        formula="added seconds per step ≈ cpu-offload-gb ÷ 25 (PCIe 4.0 × 16)",
        minimum=0,
        not_built="Offloading weights to host memory is not built yet.",
    )
    enable_prefix_caching: bool = setting(
        True,
        purpose="Keep the KV blocks of finished requests until their room is needed, and let a request whose prompt "
        "begins with the same tokens use them instead of computing them again.",
        memory="None: kept blocks are free ones, taken back least recently used first.",
        throughput="Saves the prefill of shared system prompts and earlier turns of a chat; costs one hash a block "
        "otherwise.",
        typical="On.",
    )
    num_gpu_blocks_override: int | None = setting(
        None,
        purpose="Number of KV blocks, whatever the memory settings come to. For tests of preemption and for exact "
        "comparisons; more blocks than fit fail at the start.",
        memory="Exactly this many blocks.",
        throughput="Too few force preemption.",
        typical="Unset.",
        formula="KV cache = num-gpu-blocks-override × block bytes (see block-size)",
        when_unset="As many as the memory settings allow.",
        minimum=1,
    )
    enable_sleep_mode: bool = setting(
        False,
        purpose="Let an administrator put the engine to sleep (weights to host memory, cache dropped) and wake it "
        "again.",
        memory="While asleep almost all device memory is free; host memory holds the weights.",
        throughput="No effect while awake.",
        typical="Off.",
        not_built="Sleep mode is not built yet.",
    )
