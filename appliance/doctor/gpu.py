"""NVIDIA's GPUs: whether they are there, and usable by whoever runs this."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from appliance.aws.nvml import GpuHealth, Nvml, NvmlError
from appliance.doctor.finding import Finding, ok, problem, warning
from appliance.doctor.machine import Machine

NVIDIA = "0x10de"  # PCI vendor
DISPLAY_CLASS = "0x03"  # VGA and 3D controllers; the rest is sound, USB, NVSwitch
DRIVER = "gpu driver"
DEVICES = "gpu devices"
HEALTH = "gpu health"
MEMORY = "gpu memory"
REBOOT = (
    "`sudo reboot`, which loads the module that fits the libraries; then keep both from changing apart: `apt-mark hold`"
)

ReadHealth = Callable[[], list[GpuHealth]]


def read_health() -> list[GpuHealth]:
    """Raises OSError without NVIDIA's libraries, NvmlError if they do not work."""
    return Nvml().health()


def num_gpus_on_the_bus(machine: Machine) -> int:
    """Whether or not there is a driver for them."""
    found = 0
    for device in machine.path("/sys/bus/pci/devices").glob("*"):
        vendor, kind = (machine.text(f"/sys/bus/pci/devices/{device.name}/{name}") for name in ("vendor", "class"))
        found += vendor == NVIDIA and (kind or "").startswith(DISPLAY_CLASS)
    return found


def prepare(machine: Machine) -> None:
    """As root: load the modules and make the device nodes, which a service without privileges can't.

    udev does it too, but later than a service that starts at boot, and nvidia_uvm only when somebody asks for it.
    """
    if num_gpus_on_the_bus(machine):
        machine.run(["modprobe", "-q", "-a", "nvidia", "nvidia_uvm"])
        machine.run(["nvidia-modprobe", "-c", "0", "-u"])
        machine.run(["nvidia-smi", "-L"])  # makes the node of every GPU


def usable(machine: Machine, read: ReadHealth = read_health) -> Iterator[Finding]:
    """Never "ok" on a machine with a GPU that an engine could not use: it would compute on the CPU."""
    count = num_gpus_on_the_bus(machine)
    if not count:
        yield ok(DRIVER, "no NVIDIA GPU: engines compute on the CPU")
        return
    version = machine.text("/proc/driver/nvidia/version")
    if version is None:
        loaded = "is loaded, but does not answer" if machine.has("/sys/module/nvidia") else "is not loaded"
        yield problem(
            DRIVER,
            f"{_gpus(count)} on the bus, but NVIDIA's kernel module {loaded}",
            "install the driver (Ubuntu: `linux-modules-nvidia-*-open-aws`; Debian: NVIDIA's repository), or, after a "
            "kernel update, the module for the running kernel; `dmesg | grep -i nvrm` says what it complains about",
        )
        return
    found = re.search(r"\d+\.\d+(\.\d+)?", version)
    driver = found[0] if found else "of unknown version"
    yield from _devices(machine, count)
    try:
        gpus = read()
    except OSError:
        yield problem(
            DRIVER,
            f"driver {driver} is loaded, but its library libnvidia-ml.so.1 is missing",
            f"install the libraries of driver {driver} (`libnvidia-compute-*`)",
        )
    except NvmlError as error:
        yield problem(DRIVER, f"driver {driver} and its libraries do not work together: {error}", REBOOT)
    else:
        if len(gpus) < count:
            yield problem(
                DRIVER,
                f"driver {driver} sees {len(gpus)} of {_gpus(count)}",
                "`dmesg | grep -i xid` says what happened to the others; a reboot may bring them back",
            )
        else:
            yield ok(DRIVER, f"driver {driver} sees {_gpus(count)}")
        yield from _health(gpus)


def _devices(machine: Machine, count: int) -> Iterator[Finding]:
    nodes = ["/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/nvidia{index}" for index in range(count))]
    missing = [node for node in nodes if not machine.has(node)]
    closed = [node for node in nodes if machine.has(node) and not os.access(machine.path(node), os.R_OK | os.W_OK)]
    if missing:
        yield problem(
            DEVICES,
            f"{', '.join(missing)} missing",
            "`sudo pagebox doctor --prepare-gpu`; pagebox-gpu-ready.service does that before engines start",
        )
    elif closed:
        yield problem(
            DEVICES,
            f"{', '.join(closed)} cannot be opened by this user",
            "set NVreg_DeviceFileMode=0666 for the module nvidia, which is its default",
        )
    else:
        yield ok(DEVICES, "all device nodes are there")


def _health(gpus: list[GpuHealth]) -> Iterator[Finding]:
    for gpu in gpus:
        if gpu.lost:
            yield problem(
                HEALTH, f"GPU {gpu.uuid} has fallen off the bus", "reboot; if it comes again, replace the machine"
            )
        elif gpu.row_remapping_failed:
            yield problem(HEALTH, f"GPU {gpu.uuid} has no spare memory rows left", "replace the machine")
        elif gpu.uncorrected_ecc_errors:
            yield warning(
                HEALTH,
                f"GPU {gpu.uuid} had {gpu.uncorrected_ecc_errors} uncorrected memory errors since the driver started",
                "reboot, which maps the bad rows out; if they come again, replace the machine",
            )
        else:
            yield ok(HEALTH, f"GPU {gpu.uuid} reports no error")


def memory_holders(machine: Machine) -> Iterator[Finding]:
    """Processes of others on the GPU: what they hold the KV cache does not get."""
    done = machine.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"])
    if done is None or done.code:
        return
    others = []
    for line in done.output.splitlines():
        pid, _, used = line.partition(",")
        if "pagebox.slice" not in (machine.text(f"/proc/{pid.strip()}/cgroup") or ""):
            others.append(f"process {pid.strip()} ({machine.text(f'/proc/{pid.strip()}/comm')}) holds {used.strip()}")
    if others:
        yield warning(
            MEMORY, "; ".join(others), "end what is left over from an earlier run, or lower gpu-memory-utilization"
        )
    else:
        yield ok(MEMORY, "nobody else holds memory of a GPU")


def kept_awake(machine: Machine) -> Iterator[Finding]:
    """What makes a GPU lose its state."""
    if not num_gpus_on_the_bus(machine):
        return
    done = machine.run(["systemctl", "is-enabled", "sleep.target"])
    if done is not None and done.output == "static":
        yield warning(
            "suspend",
            "the machine may suspend or hibernate, and CUDA does not survive that",
            "`systemctl mask sleep.target suspend.target hibernate.target hybrid-sleep.target`",
        )
    done = machine.run(["systemctl", "is-active", "nvidia-persistenced.service"])
    if done is not None and done.output != "active":
        yield warning(
            "gpu persistence",
            "nvidia-persistenced does not run: when no process uses a GPU the driver forgets it, and the next start "
            "takes seconds longer",
            "`systemctl enable --now nvidia-persistenced`",
        )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
