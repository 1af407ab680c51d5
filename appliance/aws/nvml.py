"""The few questions that the watcher has for NVML, NVIDIA's management library.

https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"

_SUCCESS = 0
_NOT_SUPPORTED = 3
_GPU_IS_LOST = 15
_UNCORRECTED = 1  # nvmlMemoryErrorType_t
_VOLATILE = 0  # nvmlEccCounterType_t: since the driver was loaded
_UUID_BYTES = 96


class NvmlError(Exception):
    """NVML is there and does not answer."""


@dataclass(frozen=True, slots=True)
class GpuHealth:
    uuid: str  # its index where it is lost and was never asked
    lost: bool = False
    uncorrected_ecc_errors: int = 0
    row_remapping_failed: bool = False


class Nvml:
    """Loads the library once. Raises OSError where there is none."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(library)
        self._library.nvmlErrorString.restype = ctypes.c_char_p

    def health(self) -> list[GpuHealth]:
        """Of every GPU of the machine. Takes tens of milliseconds: NVML is opened and closed, so that the driver can be
        reloaded meanwhile. Raises NvmlError."""
        self._call("nvmlInit_v2")
        try:
            count = ctypes.c_uint()
            self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
            return [self._health_of(index) for index in range(count.value)]
        finally:
            self._library.nvmlShutdown()

    def _health_of(self, index: int) -> GpuHealth:
        device = ctypes.c_void_p()
        status = self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        if status == _GPU_IS_LOST:
            return GpuHealth(str(index), lost=True)
        uuid = ctypes.create_string_buffer(_UUID_BYTES)
        errors = ctypes.c_ulonglong()
        rows = [ctypes.c_uint() for _ in range(4)]  # remapped: correctable, uncorrectable; pending; failed
        statuses = (
            self._call("nvmlDeviceGetUUID", device, uuid, ctypes.c_uint(_UUID_BYTES)),
            self._call("nvmlDeviceGetTotalEccErrors", device, _UNCORRECTED, _VOLATILE, ctypes.byref(errors)),
            self._call("nvmlDeviceGetRemappedRows", device, *(ctypes.byref(row) for row in rows)),
        )
        return GpuHealth(
            uuid.value.decode() or str(index),
            lost=_GPU_IS_LOST in statuses,
            uncorrected_ecc_errors=errors.value,
            row_remapping_failed=bool(rows[3].value),
        )

    def _call(self, name: str, *arguments: object) -> int:
        """Not supported and lost are answers: GPUs without ECC, and GPUs off their bus."""
        status = int(getattr(self._library, name)(*arguments))
        if status not in (_SUCCESS, _NOT_SUPPORTED, _GPU_IS_LOST):
            raise NvmlError(f"{name}: {self._library.nvmlErrorString(status).decode()}")
        return status
