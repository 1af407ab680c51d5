"""Speed of the batch-invariant matrix product on one GPU, against cuBLAS and the time that reading the weights takes.

    PYTHONPATH=. python tests/benchmarks/gpu_matmul.py

Times are medians over replays of a CUDA graph of launches with different weights, so that none is found in L2. The sum
at the end is of one layer's four products.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F

from appliance_kernels.triton_kernels.matmul_invariant import invariant_linear

BANDWIDTH = 3.0e12  # bytes/s read, measured on an H100
ROWS = (1, 16, 64, 128, 256, 512, 2048, 8192)
MODELS = {  # (N, K) of the products of a layer
    "Llama-3.1-8B": [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)],
    "Qwen3-0.6B": [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)],
}
L2_BYTES = 200 << 20
REPLAYS = 10

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def microseconds(product: Product, x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """Of one product."""
    for _ in range(2):  # compiled, and cuBLAS's workspace allocated, before the capture
        product(x, weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            product(x, weight)
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / len(weights))
    return statistics.median(times)


@torch.inference_mode()
def main() -> None:
    print(torch.cuda.get_device_name())
    for name, shapes in MODELS.items():
        print(
            f"\n{name}\n{'N':>6} {'K':>6} {'rows':>6} {'ours µs':>9} {'cuBLAS µs':>10} {'ratio':>6} {'reading µs':>11}"
        )
        totals = {rows: [0.0, 0.0] for rows in ROWS}
        for columns, size in shapes:
            copies = max(2, min(24, L2_BYTES // (columns * size * 2)))
            weights = list((torch.randn(copies, columns, size, device="cuda") / size**0.5).bfloat16())
            for rows in ROWS:
                x = torch.randn(rows, size, device="cuda").bfloat16()
                ours, theirs = microseconds(invariant_linear, x, weights), microseconds(F.linear, x, weights)
                totals[rows][0] += ours
                totals[rows][1] += theirs
                reading = columns * size * 2 / BANDWIDTH * 1e6
                print(f"{columns:6} {size:6} {rows:6} {ours:9.1f} {theirs:10.1f} {ours / theirs:6.2f} {reading:11.1f}")
        for rows, (ours, theirs) in totals.items():
            print(f"{'layer':>13} {rows:6} {ours:9.1f} {theirs:10.1f} {ours / theirs:6.2f}")


if __name__ == "__main__":
    main()
