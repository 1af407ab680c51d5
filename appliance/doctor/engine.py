"""Whether an engine would start with these settings, asked of the engine's own code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from appliance.config import Settings
from appliance.doctor.finding import Finding, ok, problem
from appliance.doctor.gpu import num_gpus_on_the_bus
from appliance.doctor.machine import Machine

TORCH = "torch"
PLAN = "memory plan"
_PROGRAM = "import torch; print(torch.version.cuda, torch.cuda.is_available())"


def torch_sees_the_gpu(machine: Machine) -> Iterator[Finding]:
    if not num_gpus_on_the_bus(machine):
        return
    done = machine.run([sys.executable, "-c", _PROGRAM])
    if done is None or done.code:
        yield problem(
            TORCH, f"it cannot be imported: {_last_line(done.output if done else '')}", "install pagebox again"
        )
        return
    version, available = done.output.split()[-2:]
    if version == "None":
        yield problem(TORCH, "it is the CPU build, on a machine with a GPU", "install the package for GPUs")
    elif available != "True":
        yield problem(TORCH, f"CUDA {version} of torch cannot use the GPU", "the driver is too old for it: update it")
    else:
        yield ok(TORCH, f"CUDA {version} works")


def fits(machine: Machine, settings: Settings, config: Path) -> Iterator[Finding]:
    """What `pagebox plan` says."""
    if not num_gpus_on_the_bus(machine) or not settings.model.model:
        return
    done = machine.run([sys.executable, "-m", "appliance.cli.main", "plan", "--config", str(config)])
    if done is None:
        return
    if done.code:
        yield problem(PLAN, _last_line(done.output), "change what it names; `pagebox plan` shows the whole calculation")
    else:
        yield ok(PLAN, _last_line(done.output))


def _last_line(text: str) -> str:
    return (text.splitlines() or ["nothing"])[-1].strip()
