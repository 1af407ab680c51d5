"""A spot instance is at a higher risk of interruption than before; nobody says when, or whether.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from appliance.aws.events import Event, Kind, rfc3339, utc_time
from appliance.aws.imds import Imds
from appliance.aws.monitors.monitor import MonitorError

PATH = "meta-data/events/recommendations/rebalance"


class _Recommendation(msgspec.Struct, rename="camel"):
    notice_time: str


class RebalanceMonitor:
    name = "rebalance-recommendation"
    interval = 5.0
    can_end = True

    def __init__(self, imds: Imds, instance_id: str) -> None:
        self._imds = imds
        self._instance_id = instance_id

    async def poll(self) -> Sequence[Event]:
        text = await self._imds.get(PATH)
        if text is None:
            return ()
        try:
            noticed = utc_time(msgspec.json.decode(text, type=_Recommendation).notice_time)
        except (msgspec.DecodeError, ValueError) as error:
            raise MonitorError(f"{PATH} is not what AWS documents: {error}") from error
        return [
            Event(
                identity=f"{Kind.REBALANCE_RECOMMENDATION}/{self._instance_id}/{rfc3339(noticed)}",
                kind=Kind.REBALANCE_RECOMMENDATION,
                summary=f"EC2 recommends since {rfc3339(noticed)} to replace this spot instance: it is likely to be "
                "interrupted",
            )
        ]
