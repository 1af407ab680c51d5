"""`pagebox doctor`: what is wrong with this machine for serving, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path

from appliance.doctor import engine, gpu, host, setup
from appliance.doctor.finding import Finding
from appliance.doctor.machine import Machine

CONFIG = Path("/etc/pagebox/pagebox.yaml")
SIGNS = {"ok": "ok     ", "warning": "WARNING", "problem": "PROBLEM"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=CONFIG, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--gpu", action="store_true", help="look at the GPUs alone, as engines do before they start")
    parser.add_argument(
        "--prepare-gpu", action="store_true", help="as root: load the driver's modules and make the device nodes"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array of what was found")


def run(options: argparse.Namespace) -> int:
    machine = Machine()
    if options.prepare_gpu:
        gpu.prepare(machine)
        return 0
    findings = list(gpu.usable(machine) if options.gpu else everything(machine, options.config))
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{SIGNS[finding.status]}  {finding.check}: {finding.message}")
            if finding.fix:
                print(f"         fix: {finding.fix}")
    return 1 if any(finding.status == "problem" for finding in findings) else 0


def everything(machine: Machine, config: Path) -> Iterator[Finding]:
    """All checks, the cheap ones first."""
    yield from gpu.usable(machine)
    yield from gpu.memory_holders(machine)
    yield from gpu.kept_awake(machine)
    yield from host.disk(machine)
    yield from host.shared_memory(machine)
    yield from host.executable_tmp(machine)
    yield from host.kernel(machine)
    settings, findings = setup.read_settings(config)
    yield from findings
    if settings is not None:
        yield from setup.model(machine, settings)
        yield from setup.access(machine, settings)
        yield from setup.front(machine, settings)
    yield from setup.certificate(machine, datetime.datetime.now(datetime.UTC))
    yield from host.units(machine)
    yield from host.boot(machine)
    yield from engine.torch_sees_the_gpu(machine)
    if settings is not None:
        yield from engine.fits(machine, settings, config)
