"""What AWS is asked to do: with moto's server, and with botocore's Stubber for the calls that moto lacks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.stub import Stubber

from appliance.aws.actions.action import ActionError
from appliance.aws.actions.auto_scaling import TERMINATING, CompleteLifecycle, MarkUnhealthy
from appliance.aws.actions.drain import Drain
from appliance.aws.actions.notify import Notify, Sender, SnsTopic
from appliance.aws.actions.target_groups import DeregisterTargets
from appliance.aws.admin_client import AdminClient
from appliance.aws.clients import AwsClients, AwsError
from appliance.aws.events import Event, Kind
from appliance.aws.machine import Machine
from tests.support.admin_double import AdminDouble
from tests.support.aws_server import GROUP, HOOK, REGION, Cloud
from tests.support.eventually import eventually

EVENT = Event(identity="auto-scaling-termination/i", kind=Kind.AUTO_SCALING_TERMINATION, summary="it goes")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[AdminDouble]:
    async with AdminDouble().serving(tmp_path / "admin.sock") as double:
        yield double


@pytest.fixture
def drain(tmp_path: Path) -> Drain:
    return Drain(AdminClient(str(tmp_path / "admin.sock")), {EVENT.kind}, 12, look_seconds=0.01)


# ---- target groups -----------------------------------------------------------------------------------------------


async def test_the_machine_leaves_every_target_group_it_is_in_and_no_other(
    aws: Cloud, clients: AwsClients, machine: Machine
) -> None:
    by_id, by_address, others = aws.target_group("id"), aws.target_group("address", "ip"), aws.target_group("others")
    aws.register(by_id, aws.instance_id)
    aws.register(by_id, "i-00000000000000001")
    aws.register(by_address, aws.address, 8443)
    aws.register(others, "i-00000000000000001")
    action = DeregisterTargets(clients, machine, ())
    memo = await action.act(EVENT, moved=False)
    assert aws.targets(by_id) == [("i-00000000000000001", 443)]
    assert aws.targets(by_address) == []
    assert aws.targets(others) == [("i-00000000000000001", 443)]
    await action.act(EVENT, moved=False)  # again changes nothing
    await action.undo(EVENT, memo)
    assert (aws.instance_id, 443) in aws.targets(by_id)
    assert aws.targets(by_address) == [(aws.address, 8443)]


async def test_named_groups_are_the_only_ones_it_leaves(aws: Cloud, clients: AwsClients, machine: Machine) -> None:
    arns = [aws.target_group(name) for name in ("one", "two", "three")]
    for arn in arns:
        aws.register(arn, aws.instance_id)
    await DeregisterTargets(clients, machine, ["one", arns[1]]).act(EVENT, moved=False)
    assert [bool(aws.targets(arn)) for arn in arns] == [False, False, True]


async def test_a_target_group_that_does_not_exist_is_a_failure_that_says_so(
    clients: AwsClients, machine: Machine
) -> None:
    with pytest.raises(ActionError, match="TargetGroupNotFound"):
        await DeregisterTargets(clients, machine, ["nowhere"]).act(EVENT, moved=False)


async def test_a_cloud_that_does_not_answer_is_a_failure(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: AwsClients, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused_tcp_port}")
    with pytest.raises(ActionError, match="Could not connect"):
        await DeregisterTargets(AwsClients(REGION, "http://127.0.0.1:9"), machine, ()).act(EVENT, moved=False)


# ---- Auto Scaling ------------------------------------------------------------------------------------------------


async def test_an_instance_is_marked_unhealthy_only_after_the_drain(
    aws: Cloud, clients: AwsClients, machine: Machine, drain: Drain, server: AdminDouble
) -> None:
    marking = asyncio.create_task(MarkUnhealthy(clients, machine, drain).act(EVENT, moved=False))
    draining = asyncio.create_task(drain.act(EVENT, moved=False))
    await eventually(lambda: server.state == "draining")
    await asyncio.sleep(0.05)
    assert not marking.done()
    server.state = "drained"
    await asyncio.wait_for(marking, 20)
    draining.cancel()
    assert aws.health().lower() == "unhealthy"


class Hook:
    """Answers of Auto Scaling to one instance and its hooks; the calls are checked against botocore's own model."""

    def __init__(self, clients: AwsClients, *hooks: tuple[str, int]) -> None:
        self.stub = Stubber(clients.client("autoscaling"))
        instance = {
            "InstanceId": "i-1",
            "AutoScalingGroupName": GROUP,
            "AvailabilityZone": "eu-central-1a",
            "LifecycleState": "Terminating:Wait",
            "HealthStatus": "HEALTHY",
            "ProtectedFromScaleIn": False,
        }
        self.stub.add_response(
            "describe_auto_scaling_instances", {"AutoScalingInstances": [instance]}, {"InstanceIds": ["i-1"]}
        )
        described = [
            {"LifecycleHookName": name, "LifecycleTransition": TERMINATING, "HeartbeatTimeout": timeout}
            for name, timeout in hooks
        ]
        launching = {"LifecycleHookName": "launch", "LifecycleTransition": "autoscaling:EC2_INSTANCE_LAUNCHING"}
        self.stub.add_response(
            "describe_lifecycle_hooks", {"LifecycleHooks": [*described, launching]}, {"AutoScalingGroupName": GROUP}
        )

    @staticmethod
    def action(hook: str, **more: str) -> dict[str, str]:
        return {"AutoScalingGroupName": GROUP, "LifecycleHookName": hook, "InstanceId": "i-1"} | more

    def expect_heartbeat(self, hook: str) -> None:
        self.stub.add_response("record_lifecycle_action_heartbeat", {}, self.action(hook))

    def expect_completion(self, hook: str) -> None:
        self.stub.add_response("complete_lifecycle_action", {}, self.action(hook, LifecycleActionResult="CONTINUE"))

    def refuse(self, operation: str) -> None:
        self.stub.add_client_error(operation, "ValidationError", "No active Lifecycle Action found", 400)


@pytest.fixture
def instance() -> Machine:
    return Machine("i-1", REGION, f"{REGION}a", "")


async def test_every_termination_hook_is_completed_at_once_where_nothing_drains(
    clients: AwsClients, instance: Machine, tmp_path: Path
) -> None:
    hook = Hook(clients, ("one", 60), ("two", 60))
    hook.expect_completion("one")
    hook.expect_completion("two")
    idle = Drain(AdminClient(str(tmp_path / "nothing")), (), 12)
    with hook.stub:
        await CompleteLifecycle(clients, instance, (), idle).act(EVENT, moved=False)
        hook.stub.assert_no_pending_responses()


async def test_the_hook_is_kept_waiting_while_the_server_drains_and_completed_then(
    clients: AwsClients, instance: Machine, drain: Drain, server: AdminDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.aws.actions.auto_scaling._HEARTBEATS_IN_TIMEOUT", 600)  # every 0.05 s
    hook = Hook(clients, (HOOK, 30))
    hook.expect_heartbeat(HOOK)
    hook.refuse("record_lifecycle_action_heartbeat")  # which does not matter
    calls: list[str] = []
    client = clients.client("autoscaling")
    client.meta.events.register("before-parameter-build.autoscaling", lambda model, **_: calls.append(model.name))
    with hook.stub:
        draining = asyncio.create_task(drain.act(EVENT, moved=False))
        completing = asyncio.create_task(CompleteLifecycle(clients, instance, (), drain).act(EVENT, moved=False))
        await eventually(lambda: calls.count("RecordLifecycleActionHeartbeat") == 2)
        server.state = "drained"
        hook.expect_completion(HOOK)
        await asyncio.wait_for(completing, 20)
        hook.stub.assert_no_pending_responses()
        draining.cancel()


async def test_a_hook_that_does_not_wait_yet_is_tried_again_later(
    clients: AwsClients, instance: Machine, tmp_path: Path
) -> None:
    """A spot notice comes before Auto Scaling's own reaction to it."""
    hook = Hook(clients, (HOOK, 60))
    hook.refuse("complete_lifecycle_action")
    idle = Drain(AdminClient(str(tmp_path / "nothing")), (), 12)
    with hook.stub, pytest.raises(ActionError, match="No active Lifecycle Action"):
        await CompleteLifecycle(clients, instance, (), idle).act(EVENT, moved=False)


async def test_without_a_group_there_is_no_lifecycle_to_complete(
    clients: AwsClients, aws: Cloud, tmp_path: Path
) -> None:
    stranger = Machine("i-00000000000000001", REGION, f"{REGION}a", "")
    idle = Drain(AdminClient(str(tmp_path / "nothing")), (), 12)
    assert await CompleteLifecycle(clients, stranger, (), idle).act(EVENT, moved=False) == ""


async def test_group_and_hook_are_found_in_a_real_answer(clients: AwsClients, machine: Machine, tmp_path: Path) -> None:
    """moto knows groups and hooks, and no way to complete an action: that is how far this comes."""
    idle = Drain(AdminClient(str(tmp_path / "nothing")), (), 12)
    with pytest.raises(ActionError, match="complete_lifecycle_action"):
        await CompleteLifecycle(clients, machine, [HOOK], idle).act(EVENT, moved=False)
    assert await CompleteLifecycle(clients, machine, ["another"], idle).act(EVENT, moved=False) == ""


# ---- messages ----------------------------------------------------------------------------------------------------


async def test_a_topic_gets_the_message(aws: Cloud, clients: AwsClients, machine: Machine) -> None:
    topic = aws.client("sns").create_topic(Name="notices")["TopicArn"]
    queue = aws.client("sqs").create_queue(QueueName="inbox")["QueueUrl"]
    aws.client("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=f"arn:aws:sqs:{REGION}:123456789012:inbox")
    action = Notify("sns", SnsTopic(clients, topic).send, Sender("host", machine))
    long = Event(identity="x", kind=Kind.GPU_FAILURE, summary="Die Grafikkarte fällt aus. " * 20)
    await action.act(long, moved=False)
    [received] = aws.client("sqs").receive_message(QueueUrl=queue)["Messages"]
    content: dict[str, Any] = json.loads(json.loads(received["Body"])["Message"])
    assert content["instance_id"] == aws.instance_id
    assert content["text"] == f"{aws.instance_id}: {long.summary}"
    assert (content["phase"], content["kind"]) == ("announced", "gpu-failure")


async def test_an_error_of_aws_has_its_own_code(clients: AwsClients) -> None:
    with pytest.raises(AwsError) as caught:
        await clients.call("sns", "publish", TopicArn=f"arn:aws:sns:{REGION}:123456789012:none", Message="x")
    assert caught.value.code.startswith("NotFound")
