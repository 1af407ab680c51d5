"""The engine alone on a GPU: throughput, prefill, decode latency, time to the first token, a shared prefix.

    python tests/benchmarks/gpu.py --workloads FILE --model A --tests T1,T2,T3 [--trials 3] [--out results.jsonl]

FILE is a module of workloads that knows no engine: `MODELS` (configurations by name), `write_model_dir(name, folder)`,
and `run_suite(engine, tests, out_path, …)`, which calls `generate` and `reset_prefix_cache` below. Weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from appliance.config import Settings
from appliance.engine.startup import build_core
from appliance.engine.warm_up import warm_up
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest


class OfflineEngine:
    """What the workloads drive."""

    def __init__(self, settings: Settings) -> None:
        self.core, self.ready = build_core(settings, lambda *_, **__: None)
        warm_up(self.core)
        self._number = 0

    def generate(self, requests: Sequence[dict[str, Any]], temperature: float = 0.0) -> list[int]:
        """All requests at once, to their end; returns the number of output tokens of each."""
        counts: dict[str, int] = {}
        for request in requests:
            self._number += 1
            name = str(self._number)
            counts[name] = 0
            sampling = SamplingParams(
                max_tokens=request["max_tokens"], temperature=temperature, ignore_eos=True, seed=self._number
            )
            refusal = self.core.add(AddRequest(name, request["prompt"], sampling, time.time()))
            if refusal is not None:
                raise RuntimeError(refusal.error)
        while self.core.has_work():
            for delta in self.core.step():
                counts[delta.request_id] += len(delta.token_ids)
                if delta.error is not None:
                    raise RuntimeError(delta.error)
        return list(counts.values())

    def reset_prefix_cache(self) -> None:
        self.core.reset_prefix_cache()


def load_workloads(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("workloads", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings_for(model: str, changes: dict[str, Any]) -> Settings:
    """Settings by name, over those that the comparison is made with."""
    given = {"model": model, "load_format": "dummy", "dtype": "bfloat16", "skip_tokenizer_init": True, **changes}
    groups = {}
    for group in dataclasses.fields(Settings):
        default = getattr(Settings(), group.name)
        names = {field.name for field in dataclasses.fields(default)}
        groups[group.name] = dataclasses.replace(default, **{name: given[name] for name in names & given.keys()})
    return Settings(**groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tests", default="T1,T2,T3,T4,T5")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--batches", default="1,64,256", help="batch sizes of T3")
    parser.add_argument("--out", type=Path, default=Path("results.jsonl"))
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON object of settings by name")
    parser.add_argument("--profile", type=Path, help="also write tables of kernels and the device's busy share here")
    parser.add_argument("--profile-tests", default="T1", help="which of T1, T1late, T2, T3, T5")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)6d ms %(message)s", stream=sys.stdout)
    workloads = load_workloads(options.workloads)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        settings = settings_for(workloads.write_model_dir(options.model, folder), options.settings)
        engine = OfflineEngine(settings)
        print(f"start to first token: {time.perf_counter() - began:.1f} s", flush=True)
        tests = [test for test in options.tests.split(",") if test]
        if options.profile:
            for test in options.profile_tests.split(","):
                write_profile(engine, workloads, test, options.profile)
        workloads.run_suite(
            engine,
            tests,
            options.out,
            meta={"name": f"pagebox {options.model}", "device": torch.cuda.get_device_name()},
            t3_batches=tuple(int(size) for size in options.batches.split(",")),
            trials=options.trials,
        )


PROFILED = {  # test -> the requests, steps before the profile begins, steps in it
    "T1": (lambda workloads: workloads.t1(), 40, 300),
    "T1late": (lambda workloads: workloads.t1(), 640, 200),
    "T2": (lambda workloads: workloads.t2(n=32), 0, 8),
    "T3": (lambda workloads: workloads.t3(1), 20, 200),
    "T5": (lambda workloads: workloads.t5(), 0, 60),
}


def write_profile(engine: OfflineEngine, workloads: ModuleType, test: str, out: Path) -> None:
    """How long the device was busy during some steps of a test, and with what."""
    make, before, steps = PROFILED[test]
    engine.reset_prefix_cache()
    for number, request in enumerate(make(workloads)):
        sampling = SamplingParams(max_tokens=request["max_tokens"], temperature=0.0, ignore_eos=True, seed=0)
        engine.core.add(AddRequest(f"profile-{number}", request["prompt"], sampling, time.time()))
    for _ in range(before):
        engine.core.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            engine.core.step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    while engine.core.has_work():
        engine.core.step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in events) / 1e6
    summary = f"{test}, {steps} steps: {seconds / steps * 1e3:.3f} ms a step, device busy {busy / seconds:.1%}"
    lines = [
        f"{event.self_device_time_total / 1e3:10.2f} ms {event.count:7d} × "
        f"{event.self_device_time_total / max(event.count, 1):9.2f} µs  {event.key[:90]}"
        for event in events[:30]
    ]
    with out.open("a") as file:
        print(summary, *lines, "", sep="\n", file=file)
    print(summary, flush=True)


if __name__ == "__main__":
    main()
