"""What one streamed token costs server and engine process: `pagebox serve` over an engine that computes nothing.

    python tests/benchmarks/http_streams.py [--streams 1,64,256] [--step-ms 0] [--tokens 400] [--api-server-count 1]
        [--tokenizer DIR] [--endpoint completions|chat] [--client-processes 1] [--pagebox-bench]
        [--profile FILE]

Everything is real but the model: the scheduler and its loop, the frames, the HTTP server as `pagebox serve` runs it. A
step takes `--step-ms` and gives each stream its next token; with 0, as long as the scheduler needs. The client reads
bytes and counts events, no more. For each number of streams a line: tokens and events a second, and the processor time
of the engine process and of all server processes together, in microseconds a token. An event brings several tokens
where the server does not keep up. `--profile` writes a cProfile of the (single) server process.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from appliance.config import Settings, settings_from_json, settings_to_json
from appliance.engine.core import EngineCore
from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.process import main as engine_main
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.startup_common import OnTrace, ReportPhase
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.wire import EngineReady

MAX_STREAMS = 1024
MAX_MODEL_LEN = 8192
VOCAB_SIZE = 49152  # SmolLM2's
STEP_SECONDS = "PAGEBOX_BENCHMARK_STEP_SECONDS"


class InstantModel:
    """Samples the token ids one after another, in steps of a fixed duration."""

    depth = 1

    def __init__(self, step_seconds: float) -> None:
        self._step_seconds = step_seconds
        self._due = 0.0
        self._lengths: dict[int, int] = {}  # of prompts, by row

    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        for new in step.new_rows:
            self._lengths[new.row] = new.num_prompt_tokens
        sampled = []
        for row, computed, scheduled in zip(
            step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True
        ):
            done = computed + scheduled
            sampled.append([1000 + done * 7 % 40000] if done >= self._lengths[row] else [])
        output = ModelOutput(sampled)
        self._due = max(self._due + self._step_seconds, time.perf_counter())

        def outcome() -> ModelOutput:
            time.sleep(max(0.0, self._due - time.perf_counter()))
            return output

        return outcome


def build(settings: Settings, report: ReportPhase, on_trace: OnTrace) -> tuple[EngineCore, EngineReady]:
    config = SchedulerConfig(max_num_seqs=MAX_STREAMS, max_num_batched_tokens=8192, max_model_len=MAX_MODEL_LEN)
    kv_cache = KVCacheManager(MAX_STREAMS * 64, 16)
    ready = EngineReady(
        model="instant",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=VOCAB_SIZE,
        block_size=16,
        num_blocks=MAX_STREAMS * 64,
        max_num_seqs=MAX_STREAMS,
        max_num_batched_tokens=8192,
        dtype="float32",
        device="none",
        startup_seconds=0.0,
    )
    model = InstantModel(float(os.environ[STEP_SECONDS]))
    return EngineCore(Scheduler(config, kv_cache, on_event=on_trace), model, on_trace), ready


def serve_instantly(settings_file: Path, profile: str | None) -> None:
    """What `pagebox serve` does, with this file as the engine."""
    import uvloop

    from appliance.engine.supervisor import engine_command
    from appliance.server.serve import serve

    def command(socket_path: Path, engine_settings: Path) -> list[str]:
        return [sys.executable, __file__, "engine", *engine_command(socket_path, engine_settings)[3:]]

    settings = settings_from_json(settings_file.read_bytes())
    run = serve(settings, on_listening=lambda url: print(url, flush=True), engine_command=command)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if profile is None:
            runner.run(run)
            return
        import cProfile

        profiler = cProfile.Profile()
        profiler.runcall(runner.run, run)
        profiler.dump_stats(profile)


@dataclasses.dataclass
class Reading:
    """What a client process saw. Seconds of `time.monotonic()`, which all processes share."""

    began: float
    ended: float
    events: int
    failures: int


def read_streams(port: int, path: str, body: bytes, streams: int) -> Reading:
    """`streams` requests at once, each on its own connection, read to the end."""
    request = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    selector = selectors.DefaultSelector()
    ends: dict[socket.socket, bytes] = {}
    began = time.monotonic()
    for _ in range(streams):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        ends[connection] = b""
    events = failures = 0
    while selector.get_map():
        for key, _ in selector.select():
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            data = connection.recv(2**18)
            events += data.count(b"data: {")
            if data:
                ends[connection] = (ends[connection] + data)[-64:]
                continue
            failures += b"data: [DONE]" not in ends[connection]
            selector.unregister(connection)
            connection.close()
    return Reading(began, time.monotonic(), events, failures)


@dataclasses.dataclass
class Server:
    process: psutil.Process
    port: int

    def wait_until_ready(self) -> None:
        for _ in range(1200):
            with socket.create_connection(("127.0.0.1", self.port)) as probe:
                probe.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                if b" 200 " in probe.recv(64):
                    return
            time.sleep(0.05)
        raise SystemExit("The server did not become ready within a minute")

    def processor_seconds(self) -> tuple[float, float]:
        """Of the engine, and of all server processes."""
        engine = server = 0.0
        for process in [self.process, *self.process.children(recursive=True)]:
            times = process.cpu_times()
            if "engine" in process.cmdline():
                engine += times.user + times.system
            else:
                server += times.user + times.system
        return engine, server


def measure(server: Server, pool: ProcessPoolExecutor, options: argparse.Namespace, streams: int) -> None:
    path = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}[options.endpoint]
    fields = {"max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    fields["stream_options"] = {"include_usage": True}
    prompt = {"prompt": [5, 6, 7, 8]} if options.endpoint == "completions" else {"messages": [CHAT_MESSAGE]}
    body = json.dumps({**fields, **prompt}).encode()
    shares = [
        streams * (i + 1) // options.client_processes - streams * i // options.client_processes
        for i in range(options.client_processes)
    ]
    engine_before, server_before = server.processor_seconds()
    waiting = [pool.submit(read_streams, server.port, path, body, share) for share in shares if share]
    readings = [future.result() for future in waiting]
    engine_after, server_after = server.processor_seconds()
    if failures := sum(reading.failures for reading in readings):
        print(f"{failures} streams failed", file=sys.stderr)
    seconds = max(r.ended for r in readings) - min(r.began for r in readings)
    tokens, events = streams * options.tokens, sum(r.events for r in readings) - streams
    microseconds = [
        1e6 * (after - before) / tokens
        for after, before in ((engine_after, engine_before), (server_after, server_before))
    ]
    print(
        f"{streams:>8}{tokens / seconds:>12,.0f}{events / seconds:>12,.0f}{tokens / events:>14.2f}"
        f"{microseconds[0]:>14.1f}{microseconds[1]:>14.1f}{microseconds[1] * tokens / events:>16.1f}",
        flush=True,
    )


CHAT_MESSAGE = {"role": "user", "content": "Tell me a story"}


def main() -> None:
    if sys.argv[1:2] == ["engine"]:
        sys.exit(engine_main(sys.argv[2:], build=build))
    if sys.argv[1:2] == ["server"]:
        serve_instantly(Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", default="1,64,256")
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--api-server-count", type=int, default=1)
    parser.add_argument("--client-processes", type=int, default=1)
    parser.add_argument("--tokenizer", help="default: none, as with skip-tokenizer-init")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--pagebox-bench", action="store_true", help="the same load by `pagebox bench serve` as well")
    parser.add_argument("--profile", metavar="FILE")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> None:
    settings = Settings()
    model = dataclasses.replace(
        settings.model, model="instant", tokenizer=options.tokenizer, skip_tokenizer_init=options.tokenizer is None
    )
    serving = dataclasses.replace(settings.server, port=0, **server_changes(options))
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(options.client_processes) as pool:
        settings_file = Path(folder, "settings.json")
        settings_file.write_bytes(settings_to_json(dataclasses.replace(settings, model=model, server=serving)))
        command = [sys.executable, __file__, "server", str(settings_file)]
        environment = {**os.environ, STEP_SECONDS: str(options.step_ms / 1000)}
        process = subprocess.Popen(
            command + ([options.profile] if options.profile else []), stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            measure_all(Server(psutil.Process(process.pid), int(url.rpartition(":")[2])), pool, options)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def measure_all(server: Server, pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    server.wait_until_ready()
    print(
        f"{'streams':>8}{'tokens/s':>12}{'events/s':>12}{'tokens/event':>14}"
        f"{'engine µs/t':>14}{'server µs/t':>14}{'server µs/event':>16}"
    )
    for streams in map(int, options.streams.split(",")):
        measure(server, pool, options, streams)
        if options.pagebox_bench:
            bench_serve(server, options, streams)


def bench_serve(server: Server, options: argparse.Namespace, streams: int) -> None:
    """The same load by `pagebox bench serve`: its number should not be lower."""
    command = [sys.executable, "-m", "appliance.cli.main", "bench", "serve", "--json", "--ignore-eos"]
    command += ["--base-url", f"http://127.0.0.1:{server.port}", "--endpoint", options.endpoint]
    command += ["--num-prompts", str(streams), "--max-concurrency", str(streams), "--input-len", "8"]
    command += ["--output-len", str(options.tokens), "--client-processes", str(options.client_processes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    result = json.loads(done.stdout)
    print(
        f"{'':>8}{result['output_throughput']:>12,.0f}  pagebox bench serve: first token after "
        f"{result['p50_ttft_ms']:.0f} ms, gaps {result['p50_itl_ms']:.1f} ms (p99 {result['p99_itl_ms']:.1f}), "
        f"{result['failed']} failed",
        flush=True,
    )


def server_changes(options: argparse.Namespace) -> dict[str, object]:
    return {"disable_log_requests": True, "api_server_count": options.api_server_count}


if __name__ == "__main__":
    main()
