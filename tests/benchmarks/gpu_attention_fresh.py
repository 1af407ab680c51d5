"""Speed of attention over whole prompts on one GPU: kernels and tile sizes side by side, in TFLOP/s.

    PYTHONPATH=. python tests/benchmarks/gpu_attention_fresh.py

Counted is the visible half of the scores. Each variant's output is first compared with that of the paged kernel on the
same keys and values. Times are medians over replays of a CUDA graph of several layers that share one plan. A kernel
that hangs ends the run after what is printed until then.
"""

from __future__ import annotations

import faulthandler
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from appliance_kernels.triton_kernels.attention_configs import TileConfig
from appliance_kernels.triton_kernels.attention_fresh import FreshConfig, fresh_attention, fresh_config, plan_fresh
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
HEAD_DIM = 128
BLOCK_SIZE = 16
SCALE = HEAD_DIM**-0.5
LAYERS = 6  # launches in a graph
PATIENCE = 40  # seconds for one variant, its compilation included
GOOD_ERROR = 1e-2  # ‖out - paged‖ / ‖paged‖

HEADS = {"A": (32, 8), "B": (16, 8)}
WORKLOADS = {
    "8 x 2048": [2048] * 8,
    "4 x 2048": [2048] * 4,
    "1 x 8192": [8192],
    "16 x 512": [512] * 16,
    "16 x 100…1024": random.Random(1).sample(range(100, 1024), 16),
}
MIXED_TILES = TileConfig(128, 128, 8, 3)
VARIANTS = {
    "portable 128x128/w8/s2": FreshConfig(128, 128, 8, 2),
    "portable 128x64/w8/s3": FreshConfig(128, 64, 8, 3),
    "hopper 128x128/s2": FreshConfig(128, 128, 4, 2, hopper=True),
}


@dataclass
class Prompts:
    """Whole prompts as rows of the fused projection, and the same keys and values in a paged cache."""

    lengths: list[int]
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    query_start: torch.Tensor
    seq_lens: torch.Tensor
    kv_cache: torch.Tensor
    tables: torch.Tensor

    @property
    def flop(self) -> float:
        return 4.0 * HEAD_DIM * self.q.shape[1] * sum(n * (n + 1) // 2 for n in self.lengths)


def make_prompts(lengths: list[int], num_q_heads: int, num_kv_heads: int) -> Prompts:
    starts = [0, *itertools.accumulate(lengths)]
    qkv = torch.randn(starts[-1], num_q_heads + 2 * num_kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    q, k, v = qkv.split([num_q_heads, num_kv_heads, num_kv_heads], 1)
    blocks = [-(-n // BLOCK_SIZE) for n in lengths]
    order = torch.randperm(sum(blocks), device=DEVICE)
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32, device=DEVICE)
    cache = torch.zeros(sum(blocks), 2, num_kv_heads, BLOCK_SIZE, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    by_token = cache.permute(0, 3, 1, 2, 4)
    taken = 0
    for r, (begin, end) in enumerate(itertools.pairwise(starts)):
        tables[r, : blocks[r]] = order[taken : taken + blocks[r]]
        position = torch.arange(end - begin, device=DEVICE)
        slots = (tables[r].long()[position // BLOCK_SIZE], position % BLOCK_SIZE)
        by_token[slots] = torch.stack((k[begin:end], v[begin:end]), 1)
        taken += blocks[r]
    query_start = torch.tensor(starts, dtype=torch.int32, device=DEVICE)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    return Prompts(lengths, q, k, v, query_start, seq_lens, cache, tables)


def paged(prompts: Prompts, out: torch.Tensor) -> None:
    mixed_attention(
        prompts.q,
        prompts.kv_cache,
        prompts.tables,
        prompts.query_start,
        prompts.seq_lens,
        SCALE,
        out=out,
        config=MIXED_TILES,
    )


def graph_time(prepare: Callable[[], object], layer: Callable[[object], object], layers: int) -> float:
    """Median seconds of one layer, `prepare` once a graph among them."""

    def step() -> None:
        prepared = prepare()
        for _ in range(layers):
            layer(prepared)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(15):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / layers)
    return statistics.median(times[3:])


def cell(prompts: Prompts, prepare: Callable[[], object], layer: Callable[[object], object]) -> str:
    try:
        return f"{prompts.flop / graph_time(prepare, layer, LAYERS) / 1e12:.0f}"
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:40] if str(e) else ''}"


def variant_cell(prompts: Prompts, want: torch.Tensor, config: FreshConfig) -> str:
    out = torch.full_like(want, torch.nan)

    def prepare() -> object:
        return plan_fresh(prompts.query_start, len(prompts.q), config)

    def layer(plan: object) -> None:
        fresh_attention(prompts.q, prompts.k, prompts.v, prompts.query_start, SCALE, out=out, plan=plan, config=config)

    rate = cell(prompts, prepare, layer)
    error = ((out.float() - want.float()).norm() / want.float().norm()).item()
    return rate if error < GOOD_ERROR else f"{rate} WRONG {error:.0e}"


def cudnn_cell(prompts: Prompts) -> str:
    if len(set(prompts.lengths)) > 1:
        return "-"
    shape = (len(prompts.lengths), prompts.lengths[0])
    q, k, v = (heads.contiguous().unflatten(0, shape).transpose(1, 2) for heads in (prompts.q, prompts.k, prompts.v))

    def layer(_: object) -> None:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    return cell(prompts, lambda: None, layer)


def line(name: str, cells: list[str]) -> None:
    print(f"  {name:30}" + "".join(f"{text:>16}" for text in cells), flush=True)


def main() -> None:
    torch.manual_seed(0)
    started = time.perf_counter()
    print(torch.cuda.get_device_name(), torch.__version__, f"default: {fresh_config(DEVICE, HEAD_DIM, DTYPE)}")
    for shape, (num_q_heads, num_kv_heads) in HEADS.items():
        batches = [make_prompts(lengths, num_q_heads, num_kv_heads) for lengths in WORKLOADS.values()]
        wanted = [torch.empty_like(b.q, memory_format=torch.contiguous_format) for b in batches]
        line(f"{shape}: {num_q_heads}/{num_kv_heads} heads, TFLOP/s", list(WORKLOADS))
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        cells = [
            cell(batch, lambda: None, lambda _, b=batch, w=want: paged(b, w))
            for batch, want in zip(batches, wanted, strict=True)
        ]
        line("paged 128x128/w8/s3", cells)
        line("cuDNN, dense", [cudnn_cell(batch) for batch in batches])
        for name, config in VARIANTS.items():
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            line(name, [variant_cell(batch, want, config) for batch, want in zip(batches, wanted, strict=True)])
        faulthandler.cancel_dump_traceback_later()
        plan_seconds = graph_time(
            lambda: None,
            lambda _, b=batches[0]: plan_fresh(b.query_start, len(b.q), next(iter(VARIANTS.values()))),
            LAYERS,
        )
        print(f"  plan of {next(iter(WORKLOADS))}: {plan_seconds * 1e6:.1f} µs", flush=True)
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
