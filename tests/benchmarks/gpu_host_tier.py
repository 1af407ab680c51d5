"""What the swap space costs a step on one GPU: copies between the KV cache and pinned memory beside a busy device.

    PYTHONPATH=. python tests/benchmarks/gpu_host_tier.py

For each model shape and number of blocks a step: the host's time in the call, the bus's rate, and by how much a stretch
of matrix products becomes longer when every "step" of it also copies. The ideal is a host time far below a step's, the
bus at what PCIe gives (about 50 GB/s on an H100), and no longer stretch than without copies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

from appliance.runner.host_tier import CudaHostTier, make_host_tier

BLOCK_SIZE, KV_HEADS, HEAD_DIM = 16, 8, 128
SHAPES = {"Llama-3.1-8B": (32, 6.5), "Qwen3-0.6B": (28, 2.0)}  # layers, and milliseconds of a decode step
NUM_BLOCKS = 2048
BLOCKS_A_STEP = (1, 4, 16, 64)
STEPS, REPEATS = 20, 5

Pairs = Sequence[tuple[int, int]]


def main() -> None:
    for name, (layers, step_ms) in SHAPES.items():
        shape = (NUM_BLOCKS, 2, KV_HEADS, BLOCK_SIZE, HEAD_DIM)
        caches = [torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(layers)]
        block_bytes = sum(cache[0].nbytes for cache in caches)
        began = time.perf_counter()
        tier = make_host_tier(caches, NUM_BLOCKS)
        torch.cuda.synchronize()
        pinned = NUM_BLOCKS * block_bytes
        print(f"\n{name}: {block_bytes / 2**20:.2f} MiB a block; {pinned / 2**30:.1f} GiB pinned in", end=" ")
        print(f"{time.perf_counter() - began:.1f} s")
        assert isinstance(tier, CudaHostTier)
        compute = products_of(step_ms)
        base = stretch(compute, lambda step: None)
        print(f"{'blocks':>6} {'way':>4} {'host us':>8} {'bus GB/s':>9} {'step ms':>8} {'alone':>6} {'longer':>7}")
        for count in BLOCKS_A_STEP:
            for way, copy in (("out", tier.copy_out), ("in", tier.copy_in)):
                rate, host_us = alone(copy, count, block_bytes)
                busy = stretch(compute, lambda step, copy=copy, count=count: copy(pairs_of(step, count)))
                longer = busy / base - 1
                print(f"{count:6} {way:>4} {host_us:8.0f} {rate:9.1f} {busy:8.2f} {base:6.2f} {longer:7.1%}")
        del tier, caches
        torch.cuda.empty_cache()


def pairs_of(step: int, count: int) -> Pairs:
    """Blocks and slots that no step in a row shares; slots in runs of four, as a used cache leaves them."""
    first = step * count % (NUM_BLOCKS - count)
    return [(first + i, (first + i) // 4 * 8 % NUM_BLOCKS + i % 4) for i in range(count)]


def products_of(milliseconds: float) -> Callable[[], None]:
    """Matrix products that keep the device busy for about so long."""
    a = torch.randn(4096, 4096, dtype=torch.bfloat16, device="cuda")
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(100):
        a @ a
    torch.cuda.synchronize()
    count = max(1, round(milliseconds / ((time.perf_counter() - began) * 10)))

    def run() -> None:
        for _ in range(count):
            a @ a

    return run


def stretch(compute: Callable[[], None], copy: Callable[[int], None]) -> float:
    """Milliseconds a step, when each begins with `copy`; the host runs ahead."""
    found = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for step in range(STEPS):
            copy(step)
            compute()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - began) * 1000 / STEPS)
    return statistics.median(found)


def alone(copy: Callable[[Pairs], None], count: int, block_bytes: int) -> tuple[float, float]:
    """GB/s over the bus with nothing beside it, and the host's microseconds a call."""
    rates, calls = [], []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for step in range(STEPS):
            copy(pairs_of(step, count))
        returned = time.perf_counter()
        torch.cuda.synchronize()
        rates.append(STEPS * count * block_bytes / (time.perf_counter() - began) / 1e9)
        calls.append((returned - began) * 1e6 / STEPS)
    return statistics.median(rates), statistics.median(calls)


if __name__ == "__main__":
    main()
