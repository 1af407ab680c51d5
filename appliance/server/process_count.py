"""How many server processes there are, where the settings leave it open."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.config import ServerSettings

CORES_FOR_ONE = 4  # the engine takes one or two, and what a client needs on the same machine is not less than a server
MOST = 4


def process_count(settings: ServerSettings) -> int:
    if settings.api_server_count != "auto":
        return settings.api_server_count
    has_gpu = Path("/sys/module/nvidia").exists()  # not a device: a server under systemd sees none
    cores = len(os.sched_getaffinity(0))
    return max(1, min(MOST, cores // CORES_FOR_ONE)) if has_gpu else 1
