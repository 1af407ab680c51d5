"""Leave the load balancer, so that it sends nobody here any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from appliance.aws.actions.action import ActionError
from appliance.aws.clients import AwsClients, AwsError
from appliance.aws.events import Event
from appliance.aws.machine import Machine

log = logging.getLogger(__name__)

AT_ONCE = 8  # questions: accounts with hundreds of target groups would be throttled by more
_LEAVING = frozenset({"draining", "unused"})


class Target(msgspec.Struct, frozen=True):
    """The machine's place in one target group."""

    group_arn: str
    id: str  # of the instance, or its address
    port: int


class DeregisterTargets:
    """From the target groups in `names` (names or ARNs), or from all that have this machine."""

    name = "deregister"
    at_once = False
    repeats = False

    def __init__(self, clients: AwsClients, machine: Machine, names: Sequence[str]) -> None:
        self._clients = clients
        self._ids = {machine.instance_id, machine.address} - {""}
        self._names = names

    async def act(self, event: Event, *, moved: bool) -> str:
        try:
            groups = await self._groups()
            limit = asyncio.Semaphore(AT_ONCE)
            found = await asyncio.gather(*(self._targets_in(group, limit) for group in groups))
            targets = [target for some in found for target in some]
            await asyncio.gather(*(self._change("deregister_targets", target) for target in targets))
        except AwsError as error:
            raise ActionError(str(error)) from error
        if not targets:
            log.info("This machine is in none of %d target groups", len(groups))
        for target in targets:
            log.info("Port %d is deregistered from %s", target.port, target.group_arn)
        return msgspec.json.encode(targets).decode()

    async def undo(self, event: Event, memo: str) -> None:
        """Register again exactly what was deregistered."""
        targets = msgspec.json.decode(memo, type=list[Target]) if memo else []
        try:
            for target in targets:
                await self._change("register_targets", target)
                log.info("Port %d is registered with %s again", target.port, target.group_arn)
        except AwsError as error:
            raise ActionError(str(error)) from error

    async def _groups(self) -> list[str]:
        """ARNs of the groups to look into."""
        arns = [name for name in self._names if name.startswith("arn:")]
        names = [name for name in self._names if not name.startswith("arn:")]
        if self._names and not names:
            return arns
        only = {"Names": names} if names else {}
        found = await self._clients.list_all("elbv2", "describe_target_groups", "TargetGroups", **only)
        return arns + [
            group["TargetGroupArn"] for group in found if names or group.get("TargetType") in ("instance", "ip")
        ]

    async def _targets_in(self, arn: str, limit: asyncio.Semaphore) -> list[Target]:
        async with limit:
            answer = await self._clients.call("elbv2", "describe_target_health", TargetGroupArn=arn)
        return [
            Target(arn, described["Target"]["Id"], described["Target"]["Port"])
            for described in answer["TargetHealthDescriptions"]
            if described["Target"]["Id"] in self._ids and described["TargetHealth"].get("State") not in _LEAVING
        ]

    async def _change(self, operation: str, target: Target) -> None:
        place = [{"Id": target.id, "Port": target.port}]
        await self._clients.call("elbv2", operation, TargetGroupArn=target.group_arn, Targets=place)
