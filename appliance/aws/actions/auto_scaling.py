"""What Auto Scaling is told: wait, go on, and that this instance is broken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from appliance.aws.actions.action import ActionError
from appliance.aws.actions.drain import Drain
from appliance.aws.clients import AwsClients, AwsError
from appliance.aws.events import Event
from appliance.aws.machine import Machine

log = logging.getLogger(__name__)

TERMINATING = "autoscaling:EC2_INSTANCE_TERMINATING"
_HEARTBEATS_IN_TIMEOUT = 3  # two may get lost
_NO_ACTION = "ValidationError"  # among others: the hook is not waiting for this instance, not yet or no more


class CompleteLifecycle:
    """Keeps the termination hooks of the instance's group waiting while the server drains, and completes them then."""

    name = "complete-lifecycle"
    at_once = False
    repeats = False

    def __init__(
        self,
        clients: AwsClients,
        machine: Machine,
        hook_names: Sequence[str],
        drain: Drain,
    ) -> None:
        """`hook_names` are those to complete; all termination hooks when it is empty."""
        self._clients = clients
        self._instance_id = machine.instance_id
        self._hook_names = hook_names
        self._drain = drain

    async def act(self, event: Event, *, moved: bool) -> str:
        try:
            group = await self._group()
            hooks = await self._hooks(group) if group else []
            if not hooks:
                log.info("No termination hook waits for this instance; there is no lifecycle action to complete")
                return ""
            await self._wait_for_drain(event, group, hooks)
            for hook in hooks:
                await self._complete(group, hook["LifecycleHookName"])
        except AwsError as error:
            raise ActionError(str(error)) from error
        return ""

    async def undo(self, event: Event, memo: str) -> None:
        """Auto Scaling never takes a termination back."""

    async def _group(self) -> str:
        answer = await self._clients.call(
            "autoscaling", "describe_auto_scaling_instances", InstanceIds=[self._instance_id]
        )
        return next((str(one["AutoScalingGroupName"]) for one in answer["AutoScalingInstances"]), "")

    async def _hooks(self, group: str) -> list[dict[str, Any]]:
        only = {"LifecycleHookNames": list(self._hook_names)} if self._hook_names else {}
        answer = await self._clients.call("autoscaling", "describe_lifecycle_hooks", AutoScalingGroupName=group, **only)
        return [hook for hook in answer["LifecycleHooks"] if hook["LifecycleTransition"] == TERMINATING]

    async def _wait_for_drain(self, event: Event, group: str, hooks: Sequence[dict[str, Any]]) -> None:
        shortest = min(hook["HeartbeatTimeout"] for hook in hooks)
        while True:
            try:
                async with asyncio.timeout(shortest / _HEARTBEATS_IN_TIMEOUT):
                    await self._drain.wait_until_over(event)
                return
            except TimeoutError:
                for hook in hooks:
                    await self._heartbeat(group, hook["LifecycleHookName"])

    async def _heartbeat(self, group: str, hook: str) -> None:
        try:
            await self._clients.call("autoscaling", "record_lifecycle_action_heartbeat", **self._action(group, hook))
        except AwsError as error:  # the drain goes on in any case, and the next heartbeat is near
            if error.code != _NO_ACTION:
                log.warning("The lifecycle hook %s could not be kept waiting: %s", hook, error)

    async def _complete(self, group: str, hook: str) -> None:
        action = self._action(group, hook)
        await self._clients.call("autoscaling", "complete_lifecycle_action", LifecycleActionResult="CONTINUE", **action)
        log.info("The lifecycle hook %s of %s is completed", hook, group)

    def _action(self, group: str, hook: str) -> dict[str, str]:
        return {"AutoScalingGroupName": group, "LifecycleHookName": hook, "InstanceId": self._instance_id}


class MarkUnhealthy:
    """Has Auto Scaling replace the instance, once the server has drained: from then on its time is Auto Scaling's."""

    name = "mark-unhealthy"
    at_once = False
    repeats = False

    def __init__(self, clients: AwsClients, machine: Machine, drain: Drain) -> None:
        self._clients = clients
        self._instance_id = machine.instance_id
        self._drain = drain

    async def act(self, event: Event, *, moved: bool) -> str:
        await self._drain.wait_until_over(event)
        try:
            await self._clients.call(
                "autoscaling",
                "set_instance_health",
                InstanceId=self._instance_id,
                HealthStatus="Unhealthy",
                ShouldRespectGracePeriod=False,
            )
        except AwsError as error:
            raise ActionError(str(error)) from error
        log.warning("Auto Scaling is told that this instance is unhealthy: %s", event.summary)
        return ""

    async def undo(self, event: Event, memo: str) -> None:
        """Its replacement is under way already."""
