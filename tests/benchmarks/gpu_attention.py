"""Speed of the attention kernels on one GPU, tile sizes side by side, against the card's limits and PyTorch's kernels.

    PYTHONPATH=. python tests/benchmarks/gpu_attention.py [decode] [prefill] [prefix]     (all three by default)

Decode is given as the GB/s of keys and values that must be read, prefill as TFLOP/s of the visible half of the scores.
Every variant is first compared with the reference. Times are medians over replays of a CUDA graph whose launches walk
over several caches, so that nothing is found in L2 that a model would not find there. The last lines are the tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
import time
from collections.abc import Callable

import torch

from appliance_kernels import reference
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.triton_kernels.attention_configs import (
    DecodeConfig,
    TileConfig,
    card,
    decode_config,
    mixed_config,
)
from appliance_kernels.triton_kernels.attention_decode import decode_attention, decode_workspace, plan_decode
from appliance_kernels.triton_kernels.attention_mixed import mixed_attention
from appliance_kernels.triton_kernels.attention_shared_prefix import (
    prefix_splits,
    shared_prefix_decode_attention,
    shared_prefix_workspace,
)

READ_CEILING = 3080  # GB/s, measured on an H100
MATRIX_CEILING = 754  # TFLOP/s in bfloat16, measured on an H100
DEVICE = torch.device("cuda")
HEAD_DIM = 128
BLOCK_SIZE = 16
DTYPE = torch.bfloat16
L2_BYTES = 200 << 20  # caches of one measurement are together larger than this
GOOD_ERROR = 1e-2  # ‖out - reference‖ / ‖reference‖ in bfloat16

RANDOM = random.Random(0)
SPREAD = [(1, RANDOM.randint(100, 1024) + RANDOM.randint(1, 800)) for _ in range(256)]
DECODE_WORKLOADS = {  # requests, query heads, key/value heads
    "A 256 × 100…1800": (SPREAD, 32, 8),
    "A 256 × 256": ([(1, 256)] * 256, 32, 8),
    "B 256 × 100…1800": (SPREAD, 16, 8),
    "A 64 × 256": ([(1, 256)] * 64, 32, 8),
    "A 1 × 256": ([(1, 256)], 32, 8),
    "A 1 × 2048": ([(1, 2048)], 32, 8),
    "A 1 × 32768": ([(1, 32768)], 32, 8),
    "A 16 × 8192": ([(1, 8192)] * 16, 32, 8),
    "A 1 × 16384 + 127 × 300": ([(1, 16384)] + [(1, 300)] * 127, 32, 8),
}
PREFIX_WORKLOAD = (4096, 256)  # tokens, requests
PREFILL_WORKLOADS = {
    "A 8 × 2048": ([(2048, 2048)] * 8, 32, 8),
    "A 1 × 8192": ([(8192, 8192)], 32, 8),
    "A 16 × 100…1024": ([(n, n) for n in random.Random(1).sample(range(100, 1024), 16)], 32, 8),
    "A 1 × 512 after 7680": ([(512, 8192)], 32, 8),
    "B 8 × 2048": ([(2048, 2048)] * 8, 16, 8),
    "A 512 beside 128 decodes at 600": ([(1, 600)] * 128 + [(512, 512)], 32, 8),
}


@dataclasses.dataclass
class Batch:
    """Requests over the caches of several layers."""

    metadata: AttentionMetadata
    q: torch.Tensor
    caches: list[torch.Tensor]
    query_start: torch.Tensor
    seq_lens: torch.Tensor

    @property
    def tables(self) -> torch.Tensor:
        return self.metadata.block_tables


def make_batch(requests: list[tuple[int, int]], num_q_heads: int, num_kv_heads: int, shared_tokens: int = 0) -> Batch:
    """Requests of (query tokens, all tokens) over shuffled blocks; the first `shared_tokens` are common to all."""
    shared = shared_tokens // BLOCK_SIZE
    needed = [-(-length // BLOCK_SIZE) - shared for _, length in requests]
    num_blocks = 1 + shared + sum(needed)
    order = (torch.randperm(num_blocks - 1, device=DEVICE) + 1).to(torch.int32)
    tables = torch.zeros(len(requests), shared + max(needed), dtype=torch.int32, device=DEVICE)
    tables[:, :shared] = order[:shared]
    taken = shared
    for r, count in enumerate(needed):
        tables[r, shared : shared + count] = order[taken : taken + count]
        taken += count
    starts = [0, *itertools.accumulate(count for count, _ in requests)]
    lengths = [length for _, length in requests]
    empty = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    metadata = AttentionMetadata(empty, empty, tables, starts, lengths, BLOCK_SIZE)
    shape = (num_blocks, 2, num_kv_heads, BLOCK_SIZE, HEAD_DIM)
    cache_bytes = num_blocks * 2 * num_kv_heads * BLOCK_SIZE * HEAD_DIM * 2
    layers = min(256, max(2, -(-L2_BYTES // cache_bytes)))
    return Batch(
        metadata,
        torch.randn(starts[-1], num_q_heads + 2 * num_kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)[:, :num_q_heads],
        [torch.randn(shape, device=DEVICE, dtype=DTYPE) for _ in range(layers)],
        torch.tensor(starts, dtype=torch.int32, device=DEVICE),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
    )


def layer_time(prepare: Callable[[], object], layer: Callable[[int, object], object], num_caches: int) -> float:
    """Median seconds of one layer, in a graph of `prepare` once and `layer(cache, prepared)` for at least 32 layers."""
    layers = max(num_caches, 32)

    def step() -> None:
        prepared = prepare()
        for i in range(layers):
            layer(i % num_caches, prepared)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(24):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / layers)
    return statistics.median(times[4:])


def checked(out: torch.Tensor, want: torch.Tensor) -> str:
    error = ((out.float() - want.float()).norm() / want.float().norm()).item()
    return "" if error < GOOD_ERROR else f" WRONG: error {error:.1e}"


def short(config: DecodeConfig | TileConfig) -> str:
    if isinstance(config, DecodeConfig):
        return f"{config.tile}/p{config.num_programs}/m{config.min_tiles}/w{config.num_warps}/s{config.num_stages}"
    return f"{config.rows}x{config.tile}/w{config.num_warps}/s{config.num_stages}"


def attempt(measure: Callable[[], str]) -> str:
    """One cell of a table; a variant that can't run doesn't stop the others."""
    try:
        return measure()
    except Exception as e:
        return f"{type(e).__name__}: {str(e).splitlines()[0][:60] if str(e) else ''}"


def decode_cell(batch: Batch, want: torch.Tensor, config: DecodeConfig, kv_bytes: int) -> str:
    num_q_heads, num_kv_heads = batch.q.shape[1], batch.caches[0].shape[2]
    scale = HEAD_DIM**-0.5
    workspace = decode_workspace(len(batch.seq_lens), num_q_heads, num_kv_heads, HEAD_DIM, config, DEVICE)
    out = torch.full((*batch.q.shape,), torch.nan, device=DEVICE, dtype=DTYPE)

    def layer(i: int, plan: object) -> None:
        decode_attention(
            batch.q, batch.caches[i], batch.tables, batch.seq_lens, scale, out=out, plan=plan, workspace=workspace
        )

    def prepare() -> object:
        return plan_decode(batch.seq_lens, num_kv_heads, config)

    layer(0, prepare())
    verdict = checked(out, want)
    seconds = layer_time(prepare, layer, len(batch.caches))
    rate = kv_bytes / seconds / 1e9
    return f"{seconds * 1e6:7.1f} µs {rate:5.0f} GB/s {rate / READ_CEILING * 100:3.0f} %{verdict}"


def decode_table() -> list[str]:
    sms = card(DEVICE).multiprocessors
    default = decode_config(DEVICE, HEAD_DIM, DTYPE)
    variants = [
        default,
        DecodeConfig(64, 3 * sms, 8, 4, 3),
        DecodeConfig(64, 2 * sms, 4, 4, 4),
        DecodeConfig(64, sms, 8, 4, 4),
        DecodeConfig(64, sms, 8, 4, 6),
        DecodeConfig(32, 3 * sms, 16, 4, 5),
        DecodeConfig(32, 4 * sms, 16, 4, 4),
        DecodeConfig(128, sms, 4, 8, 3),
        DecodeConfig(64, 2 * sms, 8, 8, 4),
    ]
    lines = ["", f"decode, tile/programs/min_tiles/warps/stages; the first is the default ({short(default)})"]
    for name, (requests, num_q_heads, num_kv_heads) in DECODE_WORKLOADS.items():
        batch = make_batch(requests, num_q_heads, num_kv_heads)
        want = reference.paged_attention(batch.q, batch.caches[0], batch.metadata, HEAD_DIM**-0.5)
        kv_bytes = sum(length for _, length in requests) * 2 * num_kv_heads * HEAD_DIM * 2
        floor = kv_bytes / READ_CEILING / 1e9
        lines.append(f"  {name}: {kv_bytes / 1e6:.1f} MB a layer, floor {floor * 1e6:.1f} µs")
        for config in dict.fromkeys(variants):
            cell = attempt(lambda b=batch, w=want, c=config, n=kv_bytes: decode_cell(b, w, c, n))
            lines.append(f"    {short(config):24} {cell}")
        del batch, want
        torch.cuda.empty_cache()
    return lines


def visible_pairs(requests: list[tuple[int, int]]) -> int:
    return sum(count * (length - count) + count * (count + 1) // 2 for count, length in requests)


def eager_time(call: Callable[[], object]) -> float:
    """Median seconds of a call, with device events."""
    times = []
    for _ in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def prefill_cell(batch: Batch, want: torch.Tensor | None, config: TileConfig, flop: float) -> str:
    out = torch.full((*batch.q.shape,), torch.nan, device=DEVICE, dtype=DTYPE)
    cache = batch.caches[0]

    def call() -> None:
        mixed_attention(
            batch.q, cache, batch.tables, batch.query_start, batch.seq_lens, HEAD_DIM**-0.5, out=out, config=config
        )

    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    compiled = time.perf_counter() - started
    verdict = (" NaN" if out.isnan().any() else "") if want is None else checked(out, want)
    seconds = eager_time(call)
    rate = flop / seconds / 1e12
    share = rate / MATRIX_CEILING * 100
    return f"{seconds * 1e6:8.1f} µs {rate:4.0f} TFLOP/s {share:3.0f} %  first call {compiled:.1f} s{verdict}"


def torch_kernels(requests: list[tuple[int, int]], num_q_heads: int, num_kv_heads: int, flop: float) -> list[str]:
    """PyTorch's own attention on contiguous keys and values of requests without a cached context."""
    lens = [count for count, _ in requests]
    total, longest = sum(lens), max(lens)
    q = torch.randn(total, num_q_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    k, v = torch.randn(2, total, num_kv_heads, HEAD_DIM, device=DEVICE, dtype=DTYPE)
    group = num_q_heads // num_kv_heads
    starts = torch.tensor([0, *itertools.accumulate(lens)], dtype=torch.int32, device=DEVICE)

    def report(call: Callable[[], object]) -> str:
        call()
        seconds = eager_time(call)
        return f"{seconds * 1e6:8.1f} µs {flop / seconds / 1e12:4.0f} TFLOP/s"

    def flash_varlen() -> object:
        return torch.ops.aten._flash_attention_forward(q, k, v, starts, starts, longest, longest, 0.0, True, False)

    def varlen() -> object:
        from torch.nn.attention.varlen import varlen_attn

        try:
            return varlen_attn(q, k, v, starts, starts, longest, longest, is_causal=True)
        except (TypeError, RuntimeError):
            return varlen_attn(q, k, v, starts, starts, longest, longest, window_size=(-1, 0), enable_gqa=True)

    def cudnn_varlen() -> object:
        return torch.ops.aten._cudnn_attention_forward(
            q, k, v, None, starts, starts, longest, longest, False, 0.0, True, False
        )

    calls: dict[str, Callable[[], object]] = {
        "aten flash varlen": flash_varlen,
        "nn.attention.varlen": varlen,
        "aten cudnn varlen": cudnn_varlen,
    }
    if len(set(lens)) == 1:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        dense = [t.view(len(lens), longest, -1, HEAD_DIM).transpose(1, 2) for t in (q, k, v)]

        def sdpa(backend: SDPBackend) -> object:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(*dense, is_causal=True, enable_gqa=group > 1)

        calls["SDPA flash, dense"] = lambda: sdpa(SDPBackend.FLASH_ATTENTION)
        calls["SDPA cuDNN, dense"] = lambda: sdpa(SDPBackend.CUDNN_ATTENTION)
    return [f"    {name:24} {attempt(lambda c=call: report(c))}" for name, call in calls.items()]


def prefill_table() -> list[str]:
    default = mixed_config(DEVICE, HEAD_DIM, DTYPE)
    variants = [
        default,
        TileConfig(128, 64, 8, 2),
        TileConfig(128, 64, 8, 4),
        TileConfig(128, 128, 8, 2),
        TileConfig(128, 128, 8, 3),
        TileConfig(128, 32, 8, 4),
        TileConfig(64, 64, 4, 2),
        TileConfig(64, 64, 4, 3),
        TileConfig(64, 128, 4, 2),
    ]
    lines = ["", f"prefill, rows x tile/warps/stages; the first is the default ({short(default)})"]
    for name, (requests, num_q_heads, num_kv_heads) in PREFILL_WORKLOADS.items():
        batch = make_batch(requests, num_q_heads, num_kv_heads)
        # the reference holds all scores at once: too much for the longest
        small = max(count * length for count, length in requests) <= 2**23
        want = None
        if small:
            want = reference.paged_attention(batch.q, batch.caches[0], batch.metadata, HEAD_DIM**-0.5)
        flop = 4.0 * visible_pairs(requests) * num_q_heads * HEAD_DIM
        lines.append(f"  {name}: {flop / 1e9:.1f} GFLOP, floor {flop / MATRIX_CEILING / 1e6:.1f} µs")
        for config in dict.fromkeys(variants):
            cell = attempt(lambda b=batch, w=want, c=config, n=flop: prefill_cell(b, w, c, n))
            lines.append(f"    {short(config):24} {cell}")
        if all(count == length for count, length in requests):
            lines += torch_kernels(requests, num_q_heads, num_kv_heads, flop)
        del batch, want
        torch.cuda.empty_cache()
    return lines


def prefix_table() -> list[str]:
    prefix, num_requests = PREFIX_WORKLOAD
    requests = [(1, prefix + 64 + i % 64) for i in range(num_requests)]
    batch = make_batch(requests, 32, 8, shared_tokens=prefix)
    scale = HEAD_DIM**-0.5
    want = reference.paged_attention(batch.q, batch.caches[0], batch.metadata, scale)
    own_bytes = sum(length - prefix for _, length in requests) * 4096
    pass_1 = 4 * num_requests * 32 * prefix * HEAD_DIM / MATRIX_CEILING / 1e12
    pass_2 = (own_bytes + prefix * 4096) / READ_CEILING / 1e9
    lines = [
        "",
        f"A {num_requests} × ({prefix} shared + 64…127): "
        f"floors {pass_1 * 1e6:.0f} µs of products + {pass_2 * 1e6:.0f} µs of reading",
    ]
    decode = decode_config(DEVICE, HEAD_DIM, DTYPE)
    everything = sum(length for _, length in requests) * 4096
    plain = attempt(lambda: decode_cell(batch, want, decode, everything))
    lines.append(f"    {'each reads the prefix':24} {plain}")
    shared = torch.full((num_requests,), prefix, dtype=torch.int32, device=DEVICE)
    out = torch.empty_like(want)
    tiles = mixed_config(DEVICE, HEAD_DIM, DTYPE)
    fitting = prefix_splits(num_requests, 32, 8, tiles, DEVICE)
    for config, splits in itertools.product(
        dict.fromkeys([tiles, TileConfig(128, 128, 8, 2), TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2)]),
        dict.fromkeys([fitting, 1, 2, 4]),
    ):
        workspace = shared_prefix_workspace(num_requests, 32, 8, HEAD_DIM, splits, decode, DEVICE)

        def layer(i: int, plan: object, c: TileConfig = config, w: object = workspace) -> None:
            shared_prefix_decode_attention(
                batch.q,
                batch.caches[i],
                batch.tables,
                batch.seq_lens,
                scale,
                prefix_table=batch.tables[0],
                num_shared_tokens=shared,
                out=out,
                plan=plan,
                workspace=w,
                config=c,
            )

        def prepare() -> object:
            return plan_decode(batch.seq_lens, 8, decode, num_shared_tokens=shared)

        def cell(layer: Callable[[int, object], None] = layer) -> str:
            out.fill_(torch.nan)
            layer(0, prepare())
            verdict = checked(out, want)
            return f"{layer_time(prepare, layer, len(batch.caches)) * 1e6:7.1f} µs{verdict}"

        lines.append(f"    {short(config)} splits {splits:<6} {attempt(cell)}")
    return lines


def main() -> None:
    tables = {"decode": decode_table, "prefill": prefill_table, "prefix": prefix_table}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="decode, prefill, prefix")
    chosen = parser.parse_args().tables or list(tables)
    torch.manual_seed(0)
    print(torch.cuda.get_device_name(), torch.__version__)
    for name in chosen:
        started = time.perf_counter()
        print("\n".join(tables[name]()))
        print(f"({name}: {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
