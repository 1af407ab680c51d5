"""Speed of decode attention on one GPU: kernels, tiles and programs side by side, in µs a layer and TB/s.

    PYTHONPATH=. python tests/benchmarks/gpu_attention_decode.py [words that a variant's name must contain]

Each variant's output is first compared with that of the portable kernel as it is by default. Times are medians over
replays of a CUDA graph of one plan and at least 32 layers over caches of their own, together larger than L2, in which a
model would find nothing of the layer before either. A kernel that hangs ends the run after what is printed until then.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import random
import statistics
import sys
import time
from dataclasses import dataclass

import torch

from appliance_kernels.triton_kernels.attention_configs import DecodeConfig, HopperRing, card, decode_config
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace
from appliance_kernels.triton_kernels.attention_decode_plan import plan_decode

DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
HEAD_DIM = 128
BLOCK_SIZE = 16
SCALE = HEAD_DIM**-0.5
L2_BYTES = 200 << 20  # caches of one measurement are together larger than this
MEMORY = 36 << 30  # for caches
PATIENCE = 40  # seconds for one variant, its compilation included
GOOD_ERROR = 1e-2  # ‖out - portable‖ / ‖portable‖

NUM_KV_HEADS = 8
HEADS = {"A": 32, "B": 16}  # query heads
WORKLOADS = {
    "256x100…1800": [random.Random(0).randint(100, 1800) for _ in range(256)],
    "256x256": [256] * 256,
    "64x256": [256] * 64,
    "8x1024": [1024] * 8,
    "1x256": [256],
    "1x2048": [2048],
    "16x8192": [8192] * 16,
    "1x32768": [32768],
}


def variants() -> dict[str, DecodeConfig]:
    sms = card(DEVICE).multiprocessors
    portable = dataclasses.replace(decode_config(DEVICE, HEAD_DIM, DTYPE), unit=None, hopper=None)

    def hopper(per_sm: int, tile: int, stages: int, min_tokens: int = 256) -> DecodeConfig:
        return dataclasses.replace(
            portable, num_programs=per_sm * sms, min_tiles=min_tokens // portable.tile, hopper=HopperRing(tile, stages)
        )

    return {
        "portable": portable,
        "hopper 64/s3 x2": hopper(2, 64, 3),
        "hopper 64/s6 x1": hopper(1, 64, 6),
        "hopper 128/s3 x1": hopper(1, 128, 3),
        "hopper 64/s3 x2, from 128": hopper(2, 64, 3, 128),
        "hopper 64/s3 x2, from 64": hopper(2, 64, 3, 64),
        "hopper 128/s3 x1, from 128": hopper(1, 128, 3, 128),
        "portable, unit 16": dataclasses.replace(portable, unit=16),
        "portable 32/w2/s4 x4": DecodeConfig(32, 4 * sms, 8, 2, 4, unit=16),
        "portable 16/w1/s4 x7": DecodeConfig(16, 7 * sms, 16, 1, 4, unit=16),
    }


@dataclass
class Batch:
    """Decoding requests over the caches of several layers."""

    lengths: list[int]
    q: torch.Tensor
    caches: list[torch.Tensor]
    tables: torch.Tensor
    seq_lens: torch.Tensor

    @property
    def bytes(self) -> int:
        return sum(self.lengths) * 2 * NUM_KV_HEADS * HEAD_DIM * DTYPE.itemsize


def make_batch(lengths: list[int], num_q_heads: int, memory: torch.Tensor) -> Batch:
    """Shuffled blocks of caches that are parts of `memory`, which is flat."""
    blocks = [-(-n // BLOCK_SIZE) for n in lengths]
    shape = (sum(blocks), 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM)
    size = torch.Size(shape).numel()
    layers = min(256, max(32, -(-L2_BYTES // (size * DTYPE.itemsize))), len(memory) // size)
    order = torch.randperm(sum(blocks), device=DEVICE).to(torch.int32)
    tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32, device=DEVICE)
    for r, part in enumerate(order.split(blocks)):
        tables[r, : blocks[r]] = part
    return Batch(
        lengths,
        torch.randn(len(lengths), num_q_heads + 2 * NUM_KV_HEADS, HEAD_DIM, device=DEVICE, dtype=DTYPE)[
            :, :num_q_heads
        ],
        [memory[i * size : (i + 1) * size].view(shape) for i in range(layers)],
        tables,
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
    )


def measure(batch: Batch, config: DecodeConfig) -> tuple[float, torch.Tensor]:
    """Median seconds of one layer, and the output of the first."""
    workspace = decode_workspace(len(batch.lengths), batch.q.shape[1], NUM_KV_HEADS, HEAD_DIM, config, DEVICE)
    out = torch.full(batch.q.shape, torch.nan, device=DEVICE, dtype=DTYPE)

    def step(caches: list[torch.Tensor]) -> None:
        plan = plan_decode(batch.seq_lens, NUM_KV_HEADS, config)
        for cache in caches:
            decode_attention(
                batch.q, cache, batch.tables, batch.seq_lens, SCALE, out=out, plan=plan, workspace=workspace
            )

    step(batch.caches[:1])
    first = out.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step([batch.caches[i % len(batch.caches)] for i in range(max(32, len(batch.caches)))])
    times = []
    for _ in range(9):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / max(32, len(batch.caches)))
    return statistics.median(times[2:]), first


def cell(batch: Batch, config: DecodeConfig, wanted: dict[int, torch.Tensor]) -> str:
    try:
        seconds, out = measure(batch, config)
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:40] if str(e) else ''}"
    want = wanted.setdefault(id(batch), out).float()
    error = ((out.float() - want).norm() / want.norm()).item()
    wrong = "" if error < GOOD_ERROR else f" WRONG {error:.0e}"
    return f"{seconds * 1e6:.1f} {batch.bytes / seconds / 1e12:.2f}{wrong}"


def line(name: str, cells: list[str]) -> None:
    print(f"  {name:28}" + "".join(f"{text:>15}" for text in cells), flush=True)


def main() -> None:
    torch.manual_seed(0)
    started = time.perf_counter()
    print(torch.cuda.get_device_name(), torch.__version__, f"default: {decode_config(DEVICE, HEAD_DIM, DTYPE)}")
    memory = torch.randn(MEMORY // DTYPE.itemsize, device=DEVICE, dtype=DTYPE)
    for shape, num_q_heads in HEADS.items():
        batches = [make_batch(lengths, num_q_heads, memory) for lengths in WORKLOADS.values()]
        wanted: dict[int, torch.Tensor] = {}
        line(f"{shape}: {num_q_heads}/{NUM_KV_HEADS} heads, µs TB/s", list(WORKLOADS))
        for name, config in variants().items():
            if name == "portable" or all(word in name for word in sys.argv[1:]):
                faulthandler.dump_traceback_later(PATIENCE, exit=True)
                line(name, [cell(batch, config, wanted) for batch in batches])
        faulthandler.cancel_dump_traceback_later()
    print(f"({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
