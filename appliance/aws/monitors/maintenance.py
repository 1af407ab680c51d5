"""Reboots, stops and retirements that EC2 has scheduled, days or weeks ahead.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-instances-status-check_sched.html
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from appliance.aws.events import Event, Kind, rfc3339
from appliance.aws.imds import Imds
from appliance.aws.monitors.monitor import MonitorError

PATH = "meta-data/events/maintenance/scheduled"

_TIME_FORMAT = "%d %b %Y %H:%M:%S GMT"  # 21 Jan 2019 09:00:43 GMT
# What the machine comes back from by itself, as good as new: serve until shortly before.
_COMES_BACK = frozenset({"instance-reboot", "system-reboot", "system-maintenance"})


class _Scheduled(msgspec.Struct, rename="pascal"):
    code: str
    state: str
    event_id: str
    not_before: str
    not_after: str | None = None
    description: str = ""


class MaintenanceMonitor:
    name = "scheduled-maintenance"
    interval = 60.0
    can_end = True

    def __init__(self, imds: Imds, lead_time: float) -> None:
        """`lead_time` is seconds before a reboot."""
        self._imds = imds
        self._lead_time = timedelta(seconds=lead_time)

    async def poll(self) -> Sequence[Event]:
        text = await self._imds.get(PATH)
        if text is None or not text.strip():
            return ()
        try:
            scheduled = msgspec.json.decode(text, type=list[_Scheduled])
            # Completed and canceled ones stay in the list for a while.
            return [self._event(one) for one in scheduled if one.state == "active"]
        except (msgspec.DecodeError, ValueError) as error:
            raise MonitorError(f"{PATH} is not what AWS documents: {error}") from error

    def _event(self, scheduled: _Scheduled) -> Event:
        start = _time(scheduled.not_before)
        comes_back = scheduled.code in _COMES_BACK
        window = f" and {rfc3339(_time(scheduled.not_after))}" if scheduled.not_after else ""
        when = f"between {rfc3339(start)}{window}" if window else f"from {rfc3339(start)} on"
        return Event(
            identity=f"{Kind.SCHEDULED_MAINTENANCE}/{scheduled.event_id}",
            kind=Kind.SCHEDULED_MAINTENANCE,
            summary=f"EC2 has scheduled {scheduled.code} {when}",
            # A machine to be retired leaves at once, so there is nothing to wait for until its last day.
            deadline=start if comes_back else None,
            act_from=start - self._lead_time if comes_back else None,
            outlives_boot=comes_back,
        )


def _time(text: str) -> datetime:
    return datetime.strptime(text, _TIME_FORMAT).replace(tzinfo=UTC)
