"""What NVML knows and the kernel's log may not say: memory errors beyond ECC, and GPUs that are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from appliance.aws.events import Event, Kind
from appliance.aws.monitors.monitor import MonitorError
from appliance.aws.nvml import GpuHealth, Nvml, NvmlError


class GpuMemoryMonitor:
    name = "gpu-memory"
    interval = 30.0
    can_end = False

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self.uncorrected: dict[str, int] = {}  # errors since the driver was loaded, by the GPU's UUID

    async def poll(self) -> Sequence[Event]:
        try:
            found = await asyncio.to_thread(self._nvml.health)
        except NvmlError as error:
            raise MonitorError(f"NVML does not answer: {error}") from error
        self.uncorrected = {gpu.uuid: gpu.uncorrected_ecc_errors for gpu in found}
        return [event for gpu in found for event in _events(gpu)]


def _events(gpu: GpuHealth) -> Iterator[Event]:
    # The count is not told: it would make a moved event of every further error.
    facts = (
        (gpu.lost, "lost", "has fallen off its bus"),
        (gpu.uncorrected_ecc_errors > 0, "ecc", "has memory errors that ECC could not correct"),
        (gpu.row_remapping_failed, "rows", "has no spare memory rows left and has to be replaced"),
    )
    for holds, name, sentence in facts:
        if holds:
            yield Event(
                identity=f"{Kind.GPU_FAILURE}/{gpu.uuid}/{name}",
                kind=Kind.GPU_FAILURE,
                summary=f"GPU {gpu.uuid} {sentence}",
            )
