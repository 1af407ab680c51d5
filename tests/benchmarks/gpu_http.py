"""What the server costs: the same load offline and over HTTP, streamed, on one machine.

    python tests/benchmarks/gpu_http.py --model DIR [--loads 1:8,64:256,256:768] [--input-len 128] [--output-len 256]

DIR needs a config.json and a tokenizer; weights are random. A load is CONCURRENCY:REQUESTS. Each load runs with so many
requests under way, first in this process, then by `pagebox bench serve` against `pagebox serve`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

PAGEBOX = [sys.executable, "-c", "import sys; from appliance.cli.main import main; sys.exit(main())"]
PORT = 8123


def offline(model: str, loads: list[tuple[int, int]], input_len: int, output_len: int) -> list[float]:
    """Output tokens a second of each load."""
    from appliance.protocol.sampling_params import SamplingParams
    from appliance.protocol.wire import AddRequest
    from tests.benchmarks.gpu import OfflineEngine, settings_for

    engine = OfflineEngine(settings_for(model, {}))
    core, rng = engine.core, random.Random(0)
    sampling = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True, seed=0)
    rates = []
    for concurrency, count in [(4, 8), *loads]:  # the first warms up
        core.reset_prefix_cache()
        waiting = [[rng.randrange(1000, 9000) for _ in range(input_len)] for _ in range(count)]
        running, number, began = 0, 0, time.perf_counter()
        while waiting or core.has_work():
            while waiting and running < concurrency:
                core.add(AddRequest(f"{concurrency}-{number}", waiting.pop(), sampling, time.time()))
                running, number = running + 1, number + 1
            running -= sum(delta.finish_reason is not None for delta in core.step())
        rates.append(count * output_len / (time.perf_counter() - began))
    return rates[1:]


def over_http(load: tuple[int, int], input_len: int, output_len: int) -> dict[str, Any]:
    """The report of `pagebox bench serve`."""
    concurrency, count = load
    command = ["bench", "serve", "--base-url", f"http://127.0.0.1:{PORT}", "--ignore-eos", "--num-warmups", "4"]
    command += ["--input-len", str(input_len), "--output-len", str(output_len), "--num-prompts", str(count)]
    command += ["--max-concurrency", str(concurrency), "--seed", "0", "--json"]
    done = subprocess.run([*PAGEBOX, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout))


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz"):
                return
        except OSError:
            if server.poll() is not None:
                raise SystemExit("the server ended; see its log") from None
            time.sleep(0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--loads", default="1:8,64:256,256:768")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--server-log", type=Path, default=Path("server.log"))
    parser.add_argument("--serve", nargs="*", default=[], help="more flags of pagebox serve, without their dashes: a=1")
    parser.add_argument("--offline-rates", help=argparse.SUPPRESS)
    options = parser.parse_args()
    loads = [(int(c), int(n)) for c, n in (load.split(":") for load in options.loads.split(","))]
    if options.offline_rates:  # in a process of its own, so that the device is free again
        rates = offline(options.model, loads, options.input_len, options.output_len)
        Path(options.offline_rates).write_text(json.dumps(rates))
        return
    file = options.server_log.with_suffix(".offline.json")
    subprocess.run([sys.executable, *sys.argv, "--offline-rates", str(file)], check=True, stdout=subprocess.DEVNULL)
    alone = json.loads(file.read_text())
    flags = [f"--{flag}" for flag in options.serve]
    with options.server_log.open("wb") as log:
        command = ["serve", options.model, "--load-format", "dummy", "--dtype", "bfloat16", "--port", str(PORT), *flags]
        server = subprocess.Popen([*PAGEBOX, *command, "--disable-log-requests"], stdout=log, stderr=log)
        try:
            wait_until_ready(server)
            for load, rate in zip(loads, alone, strict=True):
                report = over_http(load, options.input_len, options.output_len)
                served = report["output_throughput"]
                ttft, itl = report.get("median_ttft_ms"), report.get("median_itl_ms")
                print(
                    f"{load[0]:4d} at once: offline {rate:8.0f} tok/s, over HTTP {served:8.0f} tok/s, "
                    f"share {served / rate:.2f}; first token {ttft} ms, between tokens {itl} ms",
                    flush=True,
                )
        finally:
            server.terminate()
            server.wait(timeout=60)


if __name__ == "__main__":
    main()
