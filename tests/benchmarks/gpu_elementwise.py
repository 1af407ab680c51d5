"""Speed of all Triton kernels but attention on one GPU, against a device-to-device copy.

    PYTHONPATH=. python tests/benchmarks/gpu_elementwise.py [--sweep]

Every kernel is first compared with the reference. Times are medians over replays of a CUDA graph of many launches. They
walk over several sets of inputs where one set would fit in L2 and a model would not find it there. `--sweep` also times
other tile sizes than the table's. The first table is of what every layer runs, the second of what runs once a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable

import torch

from appliance_kernels import reference
from appliance_kernels.metadata import AttentionMetadata
from appliance_kernels.triton_kernels import sampling
from appliance_kernels.triton_kernels.activation import silu_and_mul
from appliance_kernels.triton_kernels.draws import SamplingRows
from appliance_kernels.triton_kernels.elementwise_configs import Tile
from appliance_kernels.triton_kernels.logprobs import token_logprobs
from appliance_kernels.triton_kernels.norm import add_rms_norm, rms_norm
from appliance_kernels.triton_kernels.rotary_kv import rotary_and_write_kv
from appliance_kernels.triton_kernels.step_inputs import append_tokens, decode_inputs

COPY_CEILING = 3015  # GB/s, bytes read plus bytes written, measured on an H100
DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
TOKENS = (1, 64, 256, 2048, 8192)
BATCHES = (1, 64, 256)
LAUNCHES = 24  # in a graph
REPLAYS = 20
L2_BYTES = 200 << 20  # input sets of one measurement are together larger than this, if one is larger than a 24th of it
BLOCK_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    vocab: int
    qk_norm: bool
    head_dim: int = 128


SHAPES = {
    "Llama-3.1-8B": Shape(4096, 14336, 32, 8, 128256, qk_norm=False),
    "Qwen3-0.6B": Shape(1024, 3072, 16, 8, 151936, qk_norm=True),
}
SWEEP = {
    "add_rms_norm": lambda shape: [Tile(shape.hidden, warps) for warps in (1, 2, 4, 8, 16)],
    "silu_and_mul": lambda _: [Tile(1024, 2), Tile(1024, 4), Tile(2048, 4), Tile(2048, 8), Tile(4096, 8)],
    "rotary_and_write_kv": lambda _: [Tile(4, 1), Tile(8, 1), Tile(8, 2), Tile(8, 4), Tile(16, 2), Tile(16, 4)],
}


def microseconds(launches: list[Callable[[], object]]) -> float:
    """Of one launch: `launches`, one for each set of inputs, go round in a graph of LAUNCHES."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for launch in launches:  # compiled before the capture
            launch()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(LAUNCHES):
            launches[i % len(launches)]()
    times = []
    for replay in range(REPLAYS + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            times.append(start.elapsed_time(end) * 1000 / LAUNCHES)
    return statistics.median(times)


def num_sets(set_bytes: int) -> int:
    """Enough to leave L2; one where the model's previous kernel has just left the inputs in L2."""
    return 1 if set_bytes < L2_BYTES // LAUNCHES else min(-(-L2_BYTES // set_bytes) + 1, LAUNCHES)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE).to(DTYPE)


def check(name: str, got: torch.Tensor, want: torch.Tensor) -> None:
    error = ((got.float() - want.float()).norm() / want.float().norm()).item()
    if not error < 3e-3:  # bfloat16 rounds by at most 2⁻⁹; a norm of a rounded sum, twice
        raise SystemExit(f"{name} differs from the reference by {error:.2e}")


def elementwise(shape: Shape, tokens: int, sweep: bool) -> list[tuple[str, int, float, str]]:
    """(kernel, bytes, microseconds, tile) of each kernel that every layer runs."""
    results = []

    def measure(name: str, num_bytes: int, make: Callable[[], Callable[[Tile | None], object]]) -> None:
        runs = [make() for _ in range(num_sets(num_bytes))]
        configs = [None, *(SWEEP[name](shape) if sweep and name in SWEEP else [])]
        for config in configs:
            launches = [(lambda run=run, config=config: run(config)) for run in runs]
            tile = "table" if config is None else f"{config.block} × {config.num_warps} warps"
            results.append((name, num_bytes, microseconds(launches), tile))

    weight = normal(shape.hidden)
    x, residual = normal(tokens, shape.hidden), normal(tokens, shape.hidden)
    want = reference.add_rms_norm(x.float(), residual.float(), weight.float(), 1e-5)
    for got, wanted in zip(add_rms_norm(x, residual, weight, 1e-5), want, strict=True):
        check("add_rms_norm", got, wanted)
    row_bytes = tokens * shape.hidden * 2

    def make_norm() -> Callable[[Tile | None], object]:
        x, out = normal(tokens, shape.hidden), normal(tokens, shape.hidden)
        return lambda config: rms_norm(x, weight, 1e-5, out=out, config=config)

    def make_add_norm() -> Callable[[Tile | None], object]:
        x, residual, out = (normal(tokens, shape.hidden) for _ in range(3))
        zero = torch.zeros_like(x)  # the residual must not grow without bound over thousands of launches
        return lambda config: add_rms_norm(zero, residual, weight, 1e-5, out=out, residual_out=residual, config=config)

    measure("rms_norm", 2 * row_bytes, make_norm)
    measure("add_rms_norm", 4 * row_bytes, make_add_norm)

    gated = normal(tokens, 2 * shape.intermediate)
    check("silu_and_mul", silu_and_mul(gated), reference.silu_and_mul(gated.float()))

    def make_gate() -> Callable[[Tile | None], object]:
        x, out = normal(tokens, 2 * shape.intermediate), normal(tokens, shape.intermediate)
        return lambda config: silu_and_mul(x, out=out, config=config)

    measure("silu_and_mul", 3 * tokens * shape.intermediate * 2, make_gate)

    width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim
    num_blocks = -(-tokens // BLOCK_SIZE) + 1
    slots = torch.randperm(tokens, device=DEVICE) + BLOCK_SIZE
    positions = torch.randint(8192, (tokens,), device=DEVICE)
    angles = 7 * torch.rand(8192, shape.head_dim // 2, device=DEVICE)
    cos_sin = torch.cat((angles.cos(), angles.sin()), -1)
    qk_norm = (normal(shape.head_dim), normal(shape.head_dim), 1e-6) if shape.qk_norm else None
    cache_shape = (num_blocks, 2, shape.kv_heads, BLOCK_SIZE, shape.head_dim)
    heads = shape.q_heads, shape.kv_heads, qk_norm

    qkv, cache = normal(tokens, width), torch.zeros(cache_shape, device=DEVICE, dtype=DTYPE)
    want_cache = cache.float()
    metadata = AttentionMetadata(positions, slots, torch.zeros(1, 1), [0, tokens], [tokens], BLOCK_SIZE)
    rows = reference.rotary_rows(cos_sin, positions, torch.float32)
    want_q = reference.rotary_and_write_kv(qkv.float(), rows, want_cache, metadata, *heads)
    check("rotary_and_write_kv", rotary_and_write_kv(qkv, cos_sin, positions, cache, slots, *heads), want_q)
    check("rotary_and_write_kv", cache, want_cache)

    def make_rotary() -> Callable[[Tile | None], object]:
        qkv, cache = normal(tokens, width), torch.zeros(cache_shape, device=DEVICE, dtype=DTYPE)
        return lambda config: rotary_and_write_kv(qkv, cos_sin, positions, cache, slots, *heads, config=config)

    measure("rotary_and_write_kv", 2 * tokens * width * 2, make_rotary)
    return results


def over_vocabulary(shape: Shape, batch: int) -> list[tuple[str, int, float, str]]:
    """(kernel, bytes, microseconds, what it was given) of what runs once a step."""
    results = []
    rows = torch.arange(batch, dtype=torch.int32, device=DEVICE)

    def params(top_k: int, top_p: float, min_p: float) -> SamplingRows:
        full = {"size": (batch,), "device": DEVICE}
        return SamplingRows(
            temperature=torch.full(fill_value=0.8, dtype=torch.float32, **full),
            top_k=torch.full(fill_value=top_k, dtype=torch.int32, **full),
            top_p=torch.full(fill_value=top_p, dtype=torch.float32, **full),
            min_p=torch.full(fill_value=min_p, dtype=torch.float32, **full),
            seed=torch.arange(batch, device=DEVICE),
            num_tokens=torch.full(fill_value=300, dtype=torch.int32, **full),
        )

    def measure(name: str, num_bytes: int, given: str, launch: Callable[[], object]) -> None:
        results.append((name, num_bytes, microseconds([launch]), given))

    plain, usual, floor = params(0, 1.0, 0.0), params(20, 0.95, 0.0), params(0, 1.0, 0.05)
    nucleus = params(0, 0.9, 0.0)
    for dtype in (torch.bfloat16, torch.float32):
        # spread 3: about a thousand tokens hold nine tenths of the probability; 0.3: nearly all of the vocabulary
        logits = (3 * torch.randn(batch, shape.vocab, device=DEVICE)).to(dtype)
        flat = (0.3 * torch.randn(batch, shape.vocab, device=DEVICE)).to(dtype)
        peaked = (6 * torch.randn(batch, shape.vocab, device=DEVICE)).to(dtype)
        size = logits.numel() * logits.itemsize
        if not torch.equal(sampling.greedy(logits)[0], logits.argmax(-1)):
            raise SystemExit("greedy differs from argmax")
        label = str(dtype).removeprefix("torch.")
        measure(f"greedy {label}", size, "", lambda x=logits: sampling.greedy(x))
        for name, x, given, truncated in (
            ("temperature alone", logits, plain, False),
            ("min-p 0.05", logits, floor, False),
            ("top-k 20, top-p 0.95", logits, usual, True),
            ("top-p 0.9, peaked", peaked, nucleus, True),
            ("top-p 0.9, flat", flat, nucleus, True),
        ):
            run = lambda x=x, given=given, truncated=truncated: sampling.sample(x, rows, given, truncated=truncated)  # noqa: E731
            measure(f"sample {label}", size, name, run)
        tokens = logits.argmax(-1)
        measure(f"logprobs {label}", size, "top 20", lambda x=logits, t=tokens: token_logprobs(x, t, 20))
        torch_time = microseconds([lambda x=logits: x.argmax(-1)])
        results.append((f"torch argmax {label}", size, torch_time, ""))

    last, table = (
        torch.zeros(batch, dtype=torch.int64, device=DEVICE),
        torch.zeros(batch, 512, dtype=torch.int32, device=DEVICE),
    )
    outs = [torch.zeros(batch, dtype=torch.int64, device=DEVICE) for _ in range(4)]
    lengths = torch.full((batch,), 1000, dtype=torch.int32, device=DEVICE)
    measure("decode_inputs", 0, "", lambda: decode_inputs(rows, last, lengths, table, BLOCK_SIZE, *outs))
    counted = torch.ones(batch, dtype=torch.int32, device=DEVICE)
    measure("append_tokens", 0, "", lambda: append_tokens(rows, last, last, counted))
    return results


def copy_speed() -> float:
    """GB/s of a device-to-device copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds([lambda: target.copy_(source)]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="also time other tile sizes")
    sweep = parser.parse_args().sweep
    print(f"{torch.cuda.get_device_name()}: copy {copy_speed():.0f} GB/s (reference card: {COPY_CEILING})")
    print(f"{'model':14} {'kernel':20} {'T':>5} {'µs':>9} {'GB/s':>7} {'% copy':>7}  tile")
    for model, shape in SHAPES.items():
        for tokens in TOKENS:
            for name, num_bytes, time, tile in elementwise(shape, tokens, sweep):
                speed = num_bytes / time / 1e3
                percent = 100 * speed / COPY_CEILING
                print(f"{model:14} {name:20} {tokens:5} {time:9.2f} {speed:7.0f} {percent:6.0f}%  {tile}")
    print(f"\n{'model':14} {'kernel':22} {'N':>5} {'µs':>9} {'GB/s':>7}  given")
    for model, shape in SHAPES.items():
        for batch in BATCHES:
            for name, num_bytes, time, given in over_vocabulary(shape, batch):
                print(f"{model:14} {name:22} {batch:5} {time:9.2f} {num_bytes / time / 1e3:7.0f}  {given}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
