"""The GPUs that memory can be planned for without having one, and the one that this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

MIB = 2**20

# Of a GPU that is not in the table: those of the largest one in it.
DRIVER_BYTES = 686 * MIB
MULTIPROCESSORS = 132


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the memory plan needs to know of a GPU."""

    name: str
    total_bytes: int  # as CUDA reports it, which is less than what nvidia-smi calls the total
    compute_capability: tuple[int, int]
    multiprocessors: int
    driver_bytes: int  # CUDA context, cuBLAS and Triton modules of one process
    other_bytes: int = 0  # taken by other programs


# Totals in MiB as torch.cuda.get_device_properties or an out-of-memory message printed them. The driver keeps a share
# for itself and for error correction that varies with its version, so each has a range of a few tenths of a percent:
#   a10g     22,587 (torch 2.15; 21.99 to 22.07 GiB in messages)
#   l4       22.03 to 22.05 GiB
#   l40s     44.39 to 44.42 GiB, and 45,589 MiB = 44.52 GiB with an older driver
#   a100-40  40,326 (PCIe) to 40,536; 39.49 GiB most often
#   a100-80  79.14 to 79.35 GiB
#   h100     81,082 to 81,090 (SXM), 81,008 (PCIe); up to 79.33 GiB in messages
#   h200     143,156 = 139.80 GiB
# The context grows with the number of multiprocessors.
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            Gpu("a10g", 22_587 * MIB, (8, 6), 80, 350 * MIB),
            Gpu("l4", 22_563 * MIB, (8, 9), 58, 300 * MIB),
            Gpu("l40s", 45_457 * MIB, (8, 9), 142, 550 * MIB),
            Gpu("a100-40", 40_440 * MIB, (8, 0), 108, 500 * MIB),
            Gpu("a100-80", 81_152 * MIB, (8, 0), 108, 500 * MIB),
            Gpu("h100", 81_080 * MIB, (9, 0), 132, 686 * MIB),
            Gpu("h200", 143_156 * MIB, (9, 0), 132, 686 * MIB),
        )
    }
)


def local_gpu() -> Gpu | None:
    """The GPU that an engine on this machine would take, as nvidia-smi describes it; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return None
    index = visible.split(",")[0].strip() if visible else "0"
    query = "--query-gpu=name,memory.total,memory.reserved,memory.used,compute_cap"
    try:
        done = subprocess.run(
            [program, f"--id={index}", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return gpu_from_query(done.stdout) if done.returncode == 0 else None


def gpu_from_query(answer: str) -> Gpu | None:
    """nvidia-smi's line `name, total, reserved, used, compute capability`, sizes in MiB, as a `Gpu`.

    What it reserves is not CUDA's to give; `used` does not include it. Drivers that do not say what they reserve are
    taken to reserve what others do on the same GPU.
    """
    try:
        name, total, reserved, used, capability = answer.strip().splitlines()[0].rsplit(",", 4)
        major, _, minor = capability.strip().partition(".")
        total_bytes, other_bytes = int(total) * MIB, int(used) * MIB
        compute_capability = int(major), int(minor)
    except (ValueError, IndexError):
        return None
    near = min(GPUS.values(), key=lambda gpu: abs(gpu.total_bytes - total_bytes))
    known = abs(near.total_bytes - total_bytes) < total_bytes // 40 and near.compute_capability == compute_capability
    if reserved.strip().isdecimal():
        total_bytes -= int(reserved) * MIB
    elif known:
        total_bytes = near.total_bytes
    return Gpu(
        name.strip(),
        total_bytes,
        compute_capability,
        near.multiprocessors if known else MULTIPROCESSORS,
        near.driver_bytes if known else DRIVER_BYTES,
        other_bytes,
    )
