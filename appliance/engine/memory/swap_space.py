"""Host memory as the prefix cache's second tier: whether it can be had, and how many blocks it is."""

from __future__ import annotations

from appliance.config import Settings
from appliance.engine.memory.wording import size
from appliance.engine.startup_errors import SettingsRefused, StartupError


def swap_space_bytes(settings: Settings, available_bytes: int) -> int:
    """What swap-space takes of the `available_bytes` of host memory; 0 without it.

    Raises `SettingsRefused` when settings contradict each other, `StartupError` when the host has too little memory.
    """
    wanted = int(settings.memory.swap_space * 2**30)
    if wanted == 0:
        if settings.scheduling.preemption_mode == "swap":
            raise SettingsRefused(
                "preemption-mode is swap, but there is nowhere to swap to; "
                "set swap-space to some GiB of host memory, or preemption-mode to recompute"
            )
        return 0
    if not settings.memory.enable_prefix_caching:
        raise SettingsRefused(
            f"swap-space is {settings.memory.swap_space:g}, but swapped blocks are found through the prefix cache, "
            "which is off; set enable-prefix-caching, or swap-space to 0"
        )
    if wanted > available_bytes:
        raise StartupError(
            f"swap-space asks for {size(wanted)} of host memory, but only {size(max(0, available_bytes))} are free for "
            f"it, {size(wanted - max(0, available_bytes))} too little; set swap-space to "
            f"{max(0, available_bytes) * 10 // 2**30 / 10:g} or less, or free some memory"
        )
    return wanted


def num_host_blocks(swap_bytes: int, bytes_per_block: int) -> int:
    """Blocks of the host tier. Raises `SettingsRefused` when there is a swap space that holds none."""
    if 0 < swap_bytes < bytes_per_block:
        raise SettingsRefused(
            f"swap-space is {size(swap_bytes)}, less than one KV block of {size(bytes_per_block)}; raise it, or set it "
            "to 0"
        )
    return swap_bytes // bytes_per_block
