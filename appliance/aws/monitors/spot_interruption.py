"""Two minutes at best: EC2 takes a spot instance back.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.aws.events import Event, Kind, rfc3339, utc_time
from appliance.aws.imds import Imds
from appliance.aws.monitors.monitor import MonitorError

PATH = "meta-data/spot/instance-action"


class _InstanceAction(msgspec.Struct):
    action: str
    time: str


class SpotInterruptionMonitor:
    """`terminate`, `stop` and `hibernate` alike: CUDA's state does not survive any of them."""

    name = "spot-interruption"
    interval = 5.0  # AWS's own recommendation
    can_end = True

    def __init__(self, imds: Imds, instance_id: str) -> None:
        self._imds = imds
        self._instance_id = instance_id

    async def poll(self) -> Sequence[Event]:
        text = await self._imds.get(PATH)
        if text is None:
            return ()
        try:
            notice = msgspec.json.decode(text, type=_InstanceAction)
            deadline = utc_time(notice.time)
        except (msgspec.DecodeError, ValueError) as error:
            raise MonitorError(f"{PATH} is not what AWS documents: {error}") from error
        return [
            Event(
                # Without the time, which may move: an instance has one interruption ahead of it, never two.
                identity=f"{Kind.SPOT_INTERRUPTION}/{self._instance_id}",
                kind=Kind.SPOT_INTERRUPTION,
                summary=f"EC2 will {notice.action} this spot instance at {rfc3339(deadline)}",
                deadline=deadline,
            )
        ]
