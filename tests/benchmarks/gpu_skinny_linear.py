"""Speed of products with one to four rows on one GPU, against cuBLAS with the kernels of norm and activation.

    PYTHONPATH=. python tests/benchmarks/gpu_skinny_linear.py [--tokens 1 2 4] [--model 8B 0.6B] [--sweep]

Every kernel is first compared with PyTorch in float32. Times are medians over replays of a CUDA graph that walks over
the weights of 32 layers, so that nothing is found in L2 that a model would not find there. "overlap" is programmatic
dependent launch. In the table of single kernels a kernel follows itself; the chain is a whole model's layers without
rotary and attention. `--sweep` times other tiles than the table's, with overlap, at the first number of tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from appliance_kernels import reference
from appliance_kernels.triton_kernels.activation import silu_and_mul
from appliance_kernels.triton_kernels.attention_configs import card
from appliance_kernels.triton_kernels.norm import add_rms_norm
from appliance_kernels.triton_kernels.skinny_linear import (
    add_norm_gated_linear,
    add_norm_linear,
    skinny_linear,
    supports_overlap,
)
from appliance_kernels.triton_kernels.skinny_tiles import SkinnyTile, skinny_tile

READ_CEILING = 3050  # GB/s, measured on an H100
DEVICE = torch.device("cuda")
DTYPE = torch.bfloat16
LAYERS = 32
REPLAYS = 15
EPS = 1e-5
GOOD_ERROR = 8e-3  # ‖out - float32‖ / ‖float32‖: bfloat16 rounds by at most 2⁻⁹, here up to four times
GOOD_CHAIN_ERROR = 3e-2  # the same rounding errors, carried through all layers


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    hidden: int
    intermediate: int
    queries: int  # heads times their dimension
    keys: int
    vocab: int


SHAPES = {"8B": Shape(4096, 14336, 4096, 1024, 128256), "0.6B": Shape(1024, 3072, 2048, 1024, 151936)}


@dataclasses.dataclass(frozen=True)
class Product:
    """One of a layer's products, fused and as kernels one by one; both take (x, residual, weight)."""

    name: str
    weights: list[torch.Tensor]
    fused: Callable[..., torch.Tensor]
    unfused: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    exact: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    kind: str = "linear"  # what the table of tiles is asked for

    @property
    def size(self) -> int:
        return self.weights[0].shape[1]

    @property
    def num_rows(self) -> int:
        return self.weights[0].shape[0] // (2 if self.kind == "gated" else 1)

    def tile(self, tokens: int) -> SkinnyTile:
        return skinny_tile(
            tokens,
            self.num_rows,
            self.size,
            DTYPE,
            card(DEVICE),
            whole_rows=self.kind != "linear",
            matrices=2 if self.kind == "gated" else 1,
        )


def microseconds(step: Callable[[], object], launches: int) -> float:
    """Of one of the `launches` that `step` makes, in a graph of it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiled before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for replay in range(REPLAYS + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 2:
            times.append(start.elapsed_time(end) * 1000 / launches)
    return statistics.median(times)


def make_weights(count: int, rows: int, size: int) -> list[torch.Tensor]:
    return [torch.empty(rows, size, device=DEVICE, dtype=DTYPE).normal_(0, size**-0.5) for _ in range(count)]


def error(out: torch.Tensor, want: torch.Tensor) -> float:
    return ((out.float() - want.float()).norm() / want.float().norm()).item()


def make_products(shape: Shape) -> dict[str, Product]:
    gain = torch.empty(shape.hidden, device=DEVICE, dtype=DTYPE).normal_(1, 0.1)

    def normed(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return reference.rms_norm((x + residual).float(), gain.float(), EPS)

    def exact(x: torch.Tensor, _: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x.float() @ weight.float().t()

    def plain(name: str, count: int, rows: int, size: int) -> Product:
        return Product(
            name,
            make_weights(count, rows, size),
            lambda x, _, weight, **options: skinny_linear(x, weight, **options),
            lambda x, _, weight: F.linear(x, weight),
            exact,
        )

    return {
        "qkv": Product(
            "norm + qkv",
            make_weights(LAYERS, shape.queries + 2 * shape.keys, shape.hidden),
            lambda x, r, weight, **options: add_norm_linear(x, r, gain, EPS, weight, **options)[0],
            lambda x, r, weight: F.linear(add_rms_norm(x, r, gain, EPS)[0], weight),
            lambda x, r, weight: normed(x, r) @ weight.float().t(),
            "norm",
        ),
        "o": plain("o", LAYERS, shape.hidden, shape.queries),
        "gate_up": Product(
            "norm + gate_up + silu",
            make_weights(LAYERS, 2 * shape.intermediate, shape.hidden),
            lambda x, r, weight, **options: add_norm_gated_linear(x, r, gain, EPS, weight, gelu=False, **options)[0],
            lambda x, r, weight: silu_and_mul(F.linear(add_rms_norm(x, r, gain, EPS)[0], weight)),
            lambda x, r, weight: reference.silu_and_mul(normed(x, r) @ weight.float().t()),
            "gated",
        ),
        "down": plain("down", LAYERS, shape.hidden, shape.intermediate),
        "lm_head": plain("lm_head", 1, shape.vocab, shape.hidden),
    }


def measure(product: Product, tokens: int, call: Callable[..., torch.Tensor], **options: object) -> tuple[float, str]:
    """(microseconds, GB/s of weights, and whether the result is right) of a product."""
    x, residual = (torch.randn(tokens, product.size, device=DEVICE).to(DTYPE) for _ in range(2))
    rounds = product.weights * max(1, 4 // len(product.weights))

    def step() -> None:
        for weight in rounds:
            call(x, residual, weight, **options)

    wrong = error(call(x, residual, product.weights[-1], **options), product.exact(x, residual, product.weights[-1]))
    took = microseconds(step, len(rounds))
    rate = product.weights[0].nbytes / took / 1e3
    return took, f"{rate:5.0f} GB/s" + ("" if wrong < GOOD_ERROR else f" WRONG: error {wrong:.1e}")


def compare_products(products: dict[str, Product], tokens: int, overlap: list[bool]) -> None:
    for product in products.values():
        cells = [("cuBLAS", *measure(product, tokens, product.unfused))]
        cells += [
            ("overlap" if on else "fused", *measure(product, tokens, product.fused, overlap=on)) for on in overlap
        ]
        ideal = product.weights[0].nbytes / READ_CEILING / 1e3
        line = "   ".join(f"{name} {took:7.2f} µs {rate}" for name, took, rate in cells)
        print(f"  T={tokens} {product.name:22} ideal {ideal:6.2f} µs   {line}", flush=True)


def chain(products: dict[str, Product], shape: Shape, x: torch.Tensor, residual: torch.Tensor, gain: torch.Tensor):
    """Functions (fused by overlap) and (unfused) of all layers without rotary and attention."""
    layers = list(zip(*(products[name].weights for name in ("qkv", "o", "gate_up", "down")), strict=True))

    def fused(overlap: bool) -> torch.Tensor:
        hidden, total = x, residual
        for qkv, o, gate_up, down in layers:
            heads, total = add_norm_linear(hidden, total, gain, EPS, qkv, overlap=overlap)
            hidden = skinny_linear(heads[:, : shape.queries], o, overlap=overlap)
            gated, total = add_norm_gated_linear(hidden, total, gain, EPS, gate_up, gelu=False, overlap=overlap)
            hidden = skinny_linear(gated, down, overlap=overlap)
        return hidden + total

    def unfused() -> torch.Tensor:
        hidden, total = x, residual
        for qkv, o, gate_up, down in layers:
            hidden, total = add_rms_norm(hidden, total, gain, EPS)
            hidden = F.linear(F.linear(hidden, qkv)[:, : shape.queries], o)
            hidden, total = add_rms_norm(hidden, total, gain, EPS)
            hidden = F.linear(silu_and_mul(F.linear(hidden, gate_up)), down)
        return hidden + total

    return fused, unfused


def compare_chains(products: dict[str, Product], shape: Shape, tokens: int, overlap: list[bool]) -> None:
    x, residual = (torch.randn(tokens, shape.hidden, device=DEVICE).to(DTYPE) for _ in range(2))
    fused, unfused = chain(products, shape, x, residual, torch.ones(shape.hidden, device=DEVICE, dtype=DTYPE))
    num_bytes = sum(products[name].weights[0].nbytes for name in ("qkv", "o", "gate_up", "down"))
    want = unfused()
    cells = [f"cuBLAS {microseconds(unfused, LAYERS):7.2f} µs"]
    for on in overlap:
        wrong = error(fused(on), want)
        took = microseconds(lambda on=on: fused(on), LAYERS)
        verdict = "" if wrong < GOOD_CHAIN_ERROR else f" WRONG: error {wrong:.1e}"
        cells.append(f"{'overlap' if on else 'fused'} {took:7.2f} µs {num_bytes / took / 1e3:5.0f} GB/s{verdict}")
    ideal = num_bytes / READ_CEILING / 1e3
    print(f"  T={tokens} {'CHAIN, a layer':22} ideal {ideal:6.2f} µs   {'   '.join(cells)}", flush=True)


def sweep(products: dict[str, Product], tokens: int, overlap: bool) -> None:
    """Times of tiles near the table's, best first."""
    for product in products.values():
        table = product.tile(tokens)
        tiles = {table}
        for rows, warps, programs in itertools.product((0.5, 1, 2), (0.5, 1, 2), (1, 2)):
            tile = dataclasses.replace(
                table,
                rows=max(int(table.rows * rows), 1),
                num_warps=min(max(int(table.num_warps * warps), 2), 16),
                most_programs=int(table.most_programs / warps * programs),
            )
            # weights of two tiles in a thread: beyond 160 registers' worth there is nothing to win
            if tile.rows * tile.block * DTYPE.itemsize <= 320 * tile.num_warps * 32:
                tiles.add(tile)
        timed = sorted(
            (*measure(product, tokens, product.fused, overlap=overlap, tile=tile), repr(tile)) for tile in tiles
        )
        for took, rate, tile in timed[:4] + [entry for entry in timed[4:] if entry[2] == repr(table)]:
            mark = " (table)" if tile == repr(table) else ""
            print(f"  T={tokens} {product.name:22} {took:7.2f} µs {rate} {tile}{mark}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sweep", action="store_true")
    arguments = parser.parse_args()
    overlap = [False, True] if supports_overlap(DEVICE) else [False]
    torch.manual_seed(0)
    start = time.perf_counter()
    for name in arguments.model:
        print(f"{name} on {torch.cuda.get_device_name()}", flush=True)
        products = make_products(SHAPES[name])
        if arguments.sweep:
            sweep(products, arguments.tokens[0], overlap[-1])
        else:
            for tokens in arguments.tokens:
                compare_chains(products, SHAPES[name], tokens, overlap)
                compare_products(products, tokens, overlap)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
