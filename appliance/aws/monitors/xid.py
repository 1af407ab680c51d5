"""Xid messages: what the NVIDIA driver tells the kernel's log about a GPU.

https://docs.nvidia.com/deploy/xid-errors/
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from appliance.aws.events import Event, Kind
from appliance.aws.kernel_log import KernelLog, KernelLogError
from appliance.aws.monitors.monitor import MonitorError

_XID = re.compile(r"^NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)[^)]*\): ([0-9]{1,6})(?:, (.*))?")


class XidMonitor:
    """Reads the log of the whole boot: what happened before its own start counts too."""

    name = "gpu-xid"
    interval = 2.0
    can_end = False

    def __init__(self, log: KernelLog, fatal_xids: Sequence[int]) -> None:
        self._log = log
        self._fatal = frozenset(fatal_xids)
        self.counts: Counter[int] = Counter()  # of every Xid that was read

    async def poll(self) -> Sequence[Event]:
        try:
            messages = await self._log.new_messages()
        except KernelLogError as error:
            raise MonitorError(f"{error}; GPU errors go unnoticed") from error
        found: dict[str, Event] = {}
        for match in filter(None, map(_XID.match, messages)):
            xid = int(match[2])
            self.counts[xid] += 1
            if xid in self._fatal:
                event = _event(match[1].rstrip(":."), xid)
                found.setdefault(event.identity, event)
        return list(found.values())


def _event(device: str, xid: int) -> Event:
    # Without the message's own words: they differ each time, and would make a moved event of every repetition.
    return Event(
        identity=f"{Kind.GPU_FAILURE}/{device}/xid-{xid}",
        kind=Kind.GPU_FAILURE,
        summary=f"The GPU at {device} reports Xid {xid}",
    )
