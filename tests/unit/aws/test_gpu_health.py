"""Broken GPUs are told from broken programs: the kernel's log, and NVML."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.aws.kernel_log import Journal, KernelLogError, Kmsg
from appliance.aws.monitors.gpu_memory import GpuMemoryMonitor
from appliance.aws.monitors.monitor import MonitorError
from appliance.aws.monitors.xid import XidMonitor
from appliance.aws.nvml import GpuHealth, Nvml, NvmlError

FALLEN = "NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
PROGRAM = "NVRM: Xid (PCI:0000:3b:00): 31, pid=1234, name=python3, Ch 00000008, MMU Fault"


class Messages:
    """A kernel log."""

    def __init__(self) -> None:
        self.new: list[str] = []

    async def new_messages(self) -> list[str]:
        found, self.new = self.new, []
        return found

    async def close(self) -> None: ...


def kmsg(*messages: str, priority: int = 4) -> str:
    return "".join(f"{priority},{i},98765,-;{message}\n SUBSYSTEM=pci\n" for i, message in enumerate(messages))


# ---- Xid ---------------------------------------------------------------------------------------------------------


async def test_an_xid_of_a_broken_gpu_is_an_event_and_that_of_a_program_is_counted() -> None:
    log = Messages()
    monitor = XidMonitor(log, [79])
    log.new = ["usb 1-1: new device", PROGRAM, FALLEN, FALLEN, PROGRAM]
    [event] = await monitor.poll()
    assert event.identity == "gpu-failure/0000:3b:00/xid-79"
    assert monitor.counts == {31: 2, 79: 2}
    assert list(await monitor.poll()) == []


@pytest.mark.parametrize(
    ("line", "identity"),
    [
        ("NVRM: Xid (0000:03:00): 48, An uncorrectable double bit error", "gpu-failure/0000:03:00/xid-48"),
        ("NVRM: Xid (PCI:0000:00:1e): 95", "gpu-failure/0000:00:1e/xid-95"),
        ("NVRM: Xid (PCI:0000:00:1e.0): 95, x", "gpu-failure/0000:00:1e.0/xid-95"),
    ],
)
async def test_the_driver_has_several_ways_to_write_an_xid(line: str, identity: str) -> None:
    log = Messages()
    log.new = [line]
    assert [event.identity for event in await XidMonitor(log, [48, 95]).poll()] == [identity]


async def test_a_repetition_with_other_words_is_the_same_event() -> None:
    log = Messages()
    monitor = XidMonitor(log, [119])
    events = []
    for seconds in (45, 46):
        log.new = [f"NVRM: Xid (PCI:0000:3b:00): 119, pid=1, Timeout after {seconds}s of waiting for RPC response"]
        events += await monitor.poll()
    assert events[0] == events[1]


# ---- the kernel's log --------------------------------------------------------------------------------------------


async def test_kmsg_is_read_from_the_beginning_and_then_on(tmp_path: Path) -> None:
    file = tmp_path / "kmsg"
    file.write_text(kmsg("first", FALLEN))
    log = Kmsg(file)
    assert await log.new_messages() == ["first", FALLEN]
    assert await log.new_messages() == []
    with file.open("a") as more:
        more.write(kmsg("second"))
    assert await log.new_messages() == ["second"]
    await log.close()


async def test_what_a_program_wrote_into_kmsg_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "kmsg"
    file.write_text(kmsg(FALLEN, priority=1 << 3 | 4) + "garbage\n;\n" + FALLEN + "\n")
    log = Kmsg(file)
    assert await log.new_messages() == []
    await log.close()


async def test_a_record_that_comes_in_pieces_is_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    log = Kmsg(tmp_path / "kmsg")
    with (tmp_path / "kmsg").open("w") as pipe:
        pipe.write(kmsg(FALLEN)[:40])
        pipe.flush()
        assert await log.new_messages() == []
        pipe.write(kmsg(FALLEN)[40:])
        pipe.flush()
        assert await log.new_messages() == [FALLEN]
    await log.close()


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="/dev/kmsg cannot be opened here")
async def test_this_machines_own_kmsg_can_be_read() -> None:
    try:
        log = Kmsg()
    except OSError as error:
        pytest.skip(f"/dev/kmsg cannot be opened here: {error.strerror}")
    await log.new_messages()
    await log.close()


def program(folder: Path, script: str) -> str:
    file = folder / "journalctl"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


async def read_until(log: Journal, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += await log.new_messages()
        await asyncio.sleep(0.01)
    return found


async def test_the_journal_is_followed(tmp_path: Path) -> None:
    log = Journal(program(tmp_path, f'echo "$@"; echo "{PROGRAM}"; exec sleep 60'))
    flags, message = await read_until(log, 2)
    assert {"--dmesg", "--boot", "--follow", "--no-tail"} <= set(flags.split())
    assert message == PROGRAM
    await log.close()


async def test_a_journal_that_ends_is_a_problem_and_is_begun_again(tmp_path: Path) -> None:
    log = Journal(program(tmp_path, "echo one; exit 3"))
    monitor = XidMonitor(log, [79])
    with pytest.raises(MonitorError, match="ended with code 3"):
        while True:
            await monitor.poll()
            await asyncio.sleep(0.01)
    assert await read_until(log, 1) == ["one"]
    await log.close()


async def test_without_a_journal_the_problem_is_told() -> None:
    with pytest.raises(KernelLogError, match="No such file"):
        await Journal("/nowhere/journalctl").new_messages()


# ---- NVML --------------------------------------------------------------------------------------------------------

NVML_DOUBLE = """
#include <stdio.h>
#include <string.h>
/* Two GPUs; the file STATE holds, for each: status of its handle, ECC status, errors, failed rows. */
static int gpus[2][4];
static int init_status;
int nvmlInit_v2(void) {
    FILE *file = fopen(STATE, "r");
    if (fscanf(file, "%d", &init_status) != 1) return 999;
    for (int i = 0; i < 8; i++) if (fscanf(file, "%d", &gpus[i / 4][i % 4]) != 1) return 999;
    fclose(file);
    return init_status;
}
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **device) { *device = gpus[i]; return gpus[i][0]; }
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-%d", (int)((int(*)[4])device - gpus)); return 0;
}
int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *count) {
    if (type != 1 || counter != 0) return 2;
    *count = ((int *)device)[2]; return ((int *)device)[1];
}
int nvmlDeviceGetRemappedRows(void *device, unsigned *a, unsigned *b, unsigned *pending, unsigned *failed) {
    *a = *b = *pending = 0; *failed = ((int *)device)[3]; return 0;
}
const char *nvmlErrorString(int status) { return status == 9 ? "Driver Not Loaded" : "Unknown Error"; }
"""


class NvmlDouble:
    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        source, self.library = folder / "nvml.c", folder / "libnvidia-ml.so.1"
        source.write_text(NVML_DOUBLE)
        define = f'-DSTATE="{self.state}"'
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", define, "-o", self.library, source], check=True)

    def set(self, first: Sequence[int] = (0,) * 4, second: Sequence[int] = (0,) * 4, init: int = 0) -> None:
        self.state.write_text(" ".join(map(str, (init, *first, *second))))


@pytest.fixture(scope="module")
def nvml_double(tmp_path_factory: pytest.TempPathFactory) -> NvmlDouble:
    if shutil.which("gcc") is None:
        pytest.skip("there is no C compiler to build a double of NVML with")
    return NvmlDouble(tmp_path_factory.mktemp("nvml"))


async def test_healthy_gpus_are_no_event(nvml_double: NvmlDouble) -> None:
    nvml_double.set()
    monitor = GpuMemoryMonitor(Nvml(str(nvml_double.library)))
    assert list(await monitor.poll()) == []
    assert monitor.uncorrected == {"GPU-0": 0, "GPU-1": 0}


async def test_memory_errors_beyond_ecc_are_an_event_that_further_errors_do_not_move(nvml_double: NvmlDouble) -> None:
    monitor = GpuMemoryMonitor(Nvml(str(nvml_double.library)))
    events = []
    for errors in (1, 5):
        nvml_double.set(second=(0, 0, errors, 0))
        events += await monitor.poll()
    assert events[0] == events[1]
    assert events[0].identity == "gpu-failure/GPU-1/ecc"
    assert monitor.uncorrected["GPU-1"] == 5


def test_a_gpu_without_ecc_is_healthy(nvml_double: NvmlDouble) -> None:
    nvml_double.set(first=(0, 3, 0, 0))
    assert Nvml(str(nvml_double.library)).health()[0] == GpuHealth("GPU-0")


@pytest.mark.parametrize(
    ("state", "name"), [((15, 0, 0, 0), "0/lost"), ((0, 15, 0, 0), "GPU-0/lost"), ((0, 0, 0, 1), "GPU-0/rows")]
)
async def test_lost_gpus_and_worn_out_memory_are_events(
    nvml_double: NvmlDouble, state: tuple[int, int, int, int], name: str
) -> None:
    nvml_double.set(first=state)
    events = await GpuMemoryMonitor(Nvml(str(nvml_double.library))).poll()
    assert [event.identity for event in events] == [f"gpu-failure/{name}"]


async def test_an_nvml_that_does_not_answer_is_a_problem(nvml_double: NvmlDouble) -> None:
    nvml_double.set(init=9)
    nvml = Nvml(str(nvml_double.library))
    with pytest.raises(NvmlError, match="Driver Not Loaded"):
        nvml.health()
    with pytest.raises(MonitorError, match="Driver Not Loaded"):
        await GpuMemoryMonitor(nvml).poll()


@pytest.mark.gpu
def test_the_real_nvml_answers_for_every_gpu_of_this_machine() -> None:
    health = Nvml().health()
    assert health
    assert all(gpu.uuid.startswith("GPU-") and not gpu.lost for gpu in health)
