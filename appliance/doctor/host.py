"""The machine around the GPUs: disk, memory, kernel settings, services."""

from __future__ import annotations

import re
from collections.abc import Iterator

from appliance.doctor.finding import Finding, ok, problem, warning
from appliance.doctor.gpu import num_gpus_on_the_bus
from appliance.doctor.machine import Machine

GIB = 2**30
FREE_BYTES = 5 * GIB
FOLDERS = ("/var/lib/pagebox", "/var/cache/pagebox", "/var/log")
SHARED_BYTES = 1 * GIB  # NCCL takes some hundred MB for eight GPUs
CONNECTIONS = 1024
UNITS = ("pagebox-server.service", "pagebox-engine@0.service", "pagebox-tls.service", "pagebox-spot-watcher.service")
UNITS_OF_THE_FRONT = ("nginx.service", "pagebox-gpu-ready.service")


def disk(machine: Machine) -> Iterator[Finding]:
    for folder in FOLDERS:
        free, _ = machine.free_bytes(folder)
        text = f"{folder}: {free / GIB:.1f} GiB free"
        if free < FREE_BYTES:
            yield problem("disk", text, "make room: models, compiled kernels and logs are written there")
        else:
            yield ok("disk", text)


def shared_memory(machine: Machine) -> Iterator[Finding]:
    if num_gpus_on_the_bus(machine) < 2:
        return
    _, total = machine.free_bytes("/dev/shm")
    if total < SHARED_BYTES:
        yield problem(
            "shared memory",
            f"/dev/shm has {total / GIB:.2f} GiB, too little for NCCL between GPUs",
            "`mount -o remount,size=8G /dev/shm`; in a container --shm-size",
        )
    else:
        yield ok("shared memory", f"/dev/shm has {total / GIB:.1f} GiB")


def executable_tmp(machine: Machine) -> Iterator[Finding]:
    for line in (machine.text("/proc/self/mounts") or "").splitlines():
        _, point, _, options, *_ = line.split()
        if point == "/tmp" and "noexec" in options.split(","):
            yield problem(
                "/tmp",
                "/tmp is mounted noexec: Triton cannot load the kernels that it compiles there",
                "mount it without noexec, or give the engine's unit another TMPDIR",
            )


def kernel(machine: Machine) -> Iterator[Finding]:
    queue = int(machine.text("/proc/sys/net/core/somaxconn") or 0)
    if queue < CONNECTIONS:
        yield warning(
            "connections",
            f"net.core.somaxconn is {queue}: of a burst of connections those beyond are refused",
            f"`sysctl net.core.somaxconn={4 * CONNECTIONS}`",
        )
    pages = machine.text("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    if "[never]" in pages and not num_gpus_on_the_bus(machine):
        yield warning(
            "huge pages",
            "transparent huge pages are off: a step on the CPU takes an eighth longer",
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
        )


def units(machine: Machine) -> Iterator[Finding]:
    """Those of the package; nothing where it is not installed, or systemd does not run."""
    if not machine.has("/run/systemd/system"):
        return
    for unit in (*UNITS, *UNITS_OF_THE_FRONT):
        done = machine.run(["systemctl", "show", "--property=LoadState,ActiveState,Result,StatusText", unit])
        if done is None or done.code:
            return
        state = dict(line.split("=", 1) for line in done.output.splitlines() if "=" in line)
        if state.get("LoadState") != "loaded":
            continue
        text = f"{unit} is {state['ActiveState']}"
        if state.get("StatusText"):
            text += f": {state['StatusText']}"
        if state["ActiveState"] == "failed":
            yield problem("services", f"{text} ({state['Result']})", f"`journalctl -u {unit} -n 50` says why")
        else:
            yield ok("services", text)


def boot(machine: Machine) -> Iterator[Finding]:
    done = machine.run(["systemctl", "is-enabled", "pagebox.target"])
    if done is not None and re.match(r"disabled|static", done.output):
        yield warning("boot", "pagebox does not start at boot", "`systemctl enable pagebox.target`")
