"""Auto Scaling has decided to terminate the instance: scaling in, rebalancing, an instance refresh, a failed check.

https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.aws.events import Event, Kind
from appliance.aws.imds import Imds
from appliance.aws.monitors.monitor import MonitorError

PATH = "meta-data/autoscaling/target-lifecycle-state"

_OTHER_STATES = frozenset(
    {"", "Detached", "InService", "Standby", "Warmed:Hibernated", "Warmed:Running", "Warmed:Stopped"}
    | {"Warmed:Terminated"}  # it never served
)


class AutoScalingStateMonitor:
    name = "auto-scaling-state"
    interval = 5.0
    can_end = True

    def __init__(self, imds: Imds, instance_id: str) -> None:
        self._imds = imds
        self._instance_id = instance_id

    async def poll(self) -> Sequence[Event]:
        state = (await self._imds.get(PATH) or "").strip()
        if state in _OTHER_STATES:
            return ()
        if state != "Terminated":
            raise MonitorError(f"{PATH} is {state[:60]!r}, which is no state that AWS documents")
        return [
            Event(
                identity=f"{Kind.AUTO_SCALING_TERMINATION}/{self._instance_id}",
                kind=Kind.AUTO_SCALING_TERMINATION,
                summary="Auto Scaling is about to terminate this instance",
            )
        ]
