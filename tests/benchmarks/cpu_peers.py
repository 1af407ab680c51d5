"""pagebox and `transformers serve --continuous-batching` side by side on a CPU, over HTTP, on the same weights.

    python tests/benchmarks/cpu_peers.py --model DIR [--repeats 5] [--workloads W1,W2,W3] [--json FILE]

Both servers run for the whole time, with all cores and what is said in `_servers`; one is measured while the other
idles. One that doesn't idle is stopped (SIGSTOP) meanwhile. In every repeat both get the same prompts, fresh ones, so
that no repeat profits from an earlier one's prefix cache; who goes first alternates. What is compared are the tokens a
second that each server says it generated. Greedy, and without end-of-sequence: `ignore_eos` of pagebox, `eos_token_id`
-1 in the `generation_config` that transformers takes.

Needs what `transformers serve` needs: `pip install accelerate fastapi uvicorn`. Run it on a machine that does nothing
else; the last column is what other processes took meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
import uvloop

from appliance.bench.client import Target, new_session
from appliance.bench.counters import LocalCounter
from appliance.bench.load import run_load
from appliance.bench.statistics import summarize
from appliance.bench.vocabulary import Vocabulary
from appliance.bench.workload import Prompt, Shape, random_texts
from appliance.text.tokenizer import Tokenizer
from appliance.version import __version__

HOST = "127.0.0.1"
START_SECONDS = 300
IDLE_CORES = 0.02  # a server that takes more while it has nothing to do is stopped meanwhile
QUIET_CORES = 0.12  # more than this by other processes makes a run doubtful
WARM_UP_SCALE = 0.25


@dataclass(frozen=True)
class Workload:
    title: str
    requests: int
    concurrency: int
    shape: Shape
    goal: float  # times the tokens per second of the peer


WORKLOADS = {
    "W1": Workload("one stream, 32 in, 128 out", 4, 1, Shape(0, 32, 128), 2.0),
    "W2": Workload("16 at once, 128 in, 128 out", 16, 16, Shape(0, 128, 128), 3.0),
    "W3": Workload("64 with a shared prefix of 1024, 16 at once, 16 in, 32 out", 64, 16, Shape(1024, 16, 32), 8.0),
}


@dataclass
class Server:
    name: str
    command: list[str]
    target: Target
    ready_path: str
    pause: bool = False  # while another one is measured
    process: subprocess.Popen[bytes] = field(init=False)

    def tree(self) -> list[psutil.Process]:
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu_seconds(self) -> float:
        total = 0.0
        for process in self.tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def signal_all(self, number: signal.Signals) -> None:
        for process in self.tree():
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.target.base_url + self.ready_path, timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_ready(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                why = "ended" if self.process.poll() is not None else f"was not ready within {START_SECONDS} s"
                raise SystemExit(f"{self.name} {why}; its last words:\n{_tail(log)}")
            time.sleep(0.5)


@dataclass(frozen=True)
class Run:
    """One workload on one server, once. Cores are CPU seconds a second."""

    server: str
    workload: str
    repeat: int
    output_tokens: int
    output_throughput: float
    ttft_ms: float
    itl_ms: float
    tpot_ms: float
    short: int
    cached_tokens: int
    server_cores: float
    client_cores: float
    other_cores: float


def main() -> int:
    options = _options()
    # Otherwise SIGTERM ends this process without the `finally` that ends the servers.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    vocabulary = asyncio.run(Vocabulary.of(LocalCounter(Tokenizer.load(options.model))))
    servers = _servers(options.model)
    runs: list[Run] = []
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(_running(server))
        for server in servers:
            for name in options.workloads:
                prompts = _prompts(vocabulary, name, WARM_UP_SCALE * options.scale, "warm-up")
                _measure(server, name, prompts, repeat=-1)
        _find_idlers(servers)
        for repeat in range(options.repeats):
            for name in options.workloads:
                prompts = _prompts(vocabulary, name, options.scale, f"{repeat}-{time.time_ns()}")
                for server in servers if repeat % 2 == 0 else servers[::-1]:
                    others = [other for other in servers if other is not server and other.pause]
                    with _stopped(others):
                        runs.append(_measure(server, name, prompts, repeat))
                    _say(runs[-1])
    table = [_compared(name, runs, servers) for name in options.workloads]
    _print_table(table, servers)
    if options.scale != 1:
        print(f"Only {options.scale:g} of the requests were sent: this proves that it works, and compares nothing.")
    if options.json is not None:
        options.json.write_text(json.dumps(_result(options, table, runs, servers), indent=2) + "\n", encoding="utf-8")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a Hugging Face folder, bfloat16 for a fair comparison"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workloads", type=lambda text: text.split(","), default=list(WORKLOADS), metavar="W1,W2,W3")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the number of requests; below 1 only to try it out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run there")
    options = parser.parse_args()
    options.model = str(Path(options.model).resolve())
    if unknown := [name for name in options.workloads if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}")
    if missing := [name for name in ("accelerate", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        parser.error(f"`transformers serve` needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    return options


def _servers(model: str) -> list[Server]:
    ours, theirs = _free_ports(2)
    serve = [sys.executable, "-m", "appliance.cli.main", "serve", model, "--host", HOST, "--port", str(ours)]
    transformers_serve = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--continuous-batching"]
    # It logs every request otherwise, and takes half the machine's memory for its cache: 64,000 tokens are more than
    # three times what any workload has at once.
    transformers_serve += ["--host", HOST, "--port", str(theirs), "--log-level", "error"]
    transformers_serve += ["--cb-block-size", "32", "--cb-num-blocks", "2000"]
    endless = {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False})}
    return [
        Server("pagebox", serve, Target(f"http://{HOST}:{ours}", model, ignore_eos=True), "/readyz"),
        Server("transformers", transformers_serve, Target(f"http://{HOST}:{theirs}", model, extra=endless), "/health"),
    ]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _running(server: Server) -> Iterator[None]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as file:
            server.process = subprocess.Popen(
                server.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
            )
        try:
            server.wait_until_ready(log)
            yield
        finally:
            tree = server.tree()
            server.signal_all(signal.SIGTERM)
            _, alive = psutil.wait_procs(tree, timeout=20)
            for process in alive:
                process.kill()
            server.process.wait()


@contextmanager
def _stopped(servers: Sequence[Server]) -> Iterator[None]:
    for server in servers:
        server.signal_all(signal.SIGSTOP)
    try:
        yield
    finally:
        for server in servers:
            server.signal_all(signal.SIGCONT)
            while not server.is_ready():  # its watchdogs may need a moment to find that it lives
                time.sleep(0.1)


def _find_idlers(servers: Sequence[Server]) -> None:
    """Find who takes CPU time with nothing to do."""
    time.sleep(2.0)  # what was measured last may have things to put away
    before, began = [server.cpu_seconds() for server in servers], time.perf_counter()
    time.sleep(3.0)
    for server, earlier in zip(servers, before, strict=True):
        idle = (server.cpu_seconds() - earlier) / (time.perf_counter() - began)
        server.pause = idle > IDLE_CORES
        note = "; it will be stopped while the other is measured" if server.pause else ""
        print(f"{server.name} takes {idle:.3f} cores when idle{note}", file=sys.stderr)


def _prompts(vocabulary: Vocabulary, name: str, scale: float, seed: str) -> list[Prompt]:
    workload = WORKLOADS[name]
    count = max(min(2, workload.requests), round(workload.requests * scale))
    return random_texts(vocabulary, workload.shape, count, random.Random(f"{name}-{seed}"), chat=False)


def _measure(server: Server, name: str, prompts: list[Prompt], repeat: int) -> Run:
    workload = WORKLOADS[name]

    async def load() -> list[Any]:
        async with new_session(server.target) as session:
            return await run_load(session, server.target, prompts, [0.0] * len(prompts), workload.concurrency)

    busy, ours, mine, began = _busy_seconds(), server.cpu_seconds(), time.process_time(), time.perf_counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        records = runner.run(load())
    seconds = time.perf_counter() - began
    busy, ours, mine = _busy_seconds() - busy, server.cpu_seconds() - ours, time.process_time() - mine
    summary = summarize(records)
    expected = workload.shape.prefix + workload.shape.input
    if summary.failures:
        first = summary.failures[0]
        raise SystemExit(f"{server.name}, {name}: {first.count} × {first.kind}: {first.example}")
    if not summary.tokens_counted_by_server:
        raise SystemExit(f"{server.name} does not say how many tokens it generated; nothing to compare")
    if {record.prompt_tokens for record in records} != {expected}:
        raise SystemExit(f"{server.name}, {name}: the prompts must have {expected} tokens each, but have not")
    return Run(
        server=server.name,
        workload=name,
        repeat=repeat,
        output_tokens=summary.output_tokens,
        output_throughput=summary.output_throughput,
        ttft_ms=summary.ttft.percentile(50) * 1000,
        itl_ms=summary.itl.percentile(50) * 1000,
        tpot_ms=summary.tpot.percentile(50) * 1000,
        short=summary.short,
        cached_tokens=summary.cached_tokens,
        server_cores=ours / seconds,
        client_cores=mine / seconds,
        other_cores=max(busy - ours - mine, 0.0) / seconds,
    )


def _busy_seconds() -> float:
    """CPU seconds of all processes since the machine started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _say(run: Run) -> None:
    doubt = "  NOISY" if run.other_cores > QUIET_CORES else ""
    print(
        f"{run.repeat + 1}  {run.workload}  {run.server:<13}{run.output_throughput:8.1f} tok/s  "
        f"TTFT {run.ttft_ms:8.1f} ms  ITL {run.itl_ms:7.2f} ms  cores: server {run.server_cores:.2f}, "
        f"client {run.client_cores:.2f}, others {run.other_cores:.2f}{doubt}",
        file=sys.stderr,
        flush=True,
    )


def _compared(name: str, runs: Sequence[Run], servers: Sequence[Server]) -> dict[str, Any]:
    """The medians of a workload."""

    def median(server: Server, number: str) -> float:
        return statistics.median(
            getattr(run, number) for run in runs if (run.server, run.workload) == (server.name, name)
        )

    ours, theirs = servers
    numbers = ("output_throughput", "ttft_ms", "itl_ms", "tpot_ms")
    return {
        "workload": name,
        **{server.name: {number: median(server, number) for number in numbers} for server in servers},
        "ratio": median(ours, "output_throughput") / median(theirs, "output_throughput"),
        "goal": WORKLOADS[name].goal,
        "short_requests": sum(run.short for run in runs if run.workload == name),
        "other_cores": max(run.other_cores for run in runs if run.workload == name),
    }


def _print_table(table: Sequence[dict[str, Any]], servers: Sequence[Server]) -> None:
    ours, theirs = (server.name for server in servers)
    heads = [f"{ours} tok/s", f"{theirs} tok/s", "ratio", "goal"]
    heads += [f"TTFT p50 {ours}", theirs, f"ITL p50 {ours}", theirs, "others' cores"]
    print("| workload | " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * len(heads))
    for row in table:
        mine, peer = row[ours], row[theirs]
        cells = [f"{mine['output_throughput']:.1f}", f"{peer['output_throughput']:.1f}"]
        cells += [f"{row['ratio']:.2f}×", f"{row['goal']:g}×"]
        cells += [f"{one['ttft_ms']:.0f} ms" for one in (mine, peer)] + [
            f"{one['itl_ms']:.1f} ms" for one in (mine, peer)
        ]
        cells.append(f"≤ {row['other_cores']:.2f}")
        print(f"| {row['workload']}: {WORKLOADS[row['workload']].title} | " + " | ".join(cells) + " |")
    if short := sum(row["short_requests"] for row in table):
        print(f"{short} requests ended before their length; only tokens that came are counted.")


def _result(
    options: argparse.Namespace, table: list[dict[str, Any]], runs: Sequence[Run], servers: Sequence[Server]
) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "model": Path(options.model).name,
        "cores": os.cpu_count(),
        "versions": {"pagebox": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
        "repeats": options.repeats,
        "scale": options.scale,
        "stopped_while_idle": [server.name for server in servers if server.pause],
        "medians": table,
        "runs": [asdict(run) for run in runs],
    }


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main())
