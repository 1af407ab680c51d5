"""moto, a server that answers like AWS, and what stands in its cloud."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

REGION = "eu-central-1"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
GROUP = "servers"
HOOK = "drain"


@dataclass(frozen=True)
class Cloud:
    """An Auto Scaling group of one instance, with a termination hook."""

    url: str
    instance_id: str
    address: str
    vpc: str

    def client(self, service: str) -> Any:
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def target_group(self, name: str, kind: str = "instance", port: int = 443) -> str:
        """The ARN of a new one."""
        made = self.client("elbv2").create_target_group(
            Name=name, Protocol="HTTPS", Port=port, VpcId=self.vpc, TargetType=kind
        )
        return str(made["TargetGroups"][0]["TargetGroupArn"])

    def register(self, arn: str, target: str, port: int = 443) -> None:
        self.client("elbv2").register_targets(TargetGroupArn=arn, Targets=[{"Id": target, "Port": port}])

    def targets(self, arn: str) -> list[tuple[str, int]]:
        found = self.client("elbv2").describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
        return sorted((one["Target"]["Id"], one["Target"]["Port"]) for one in found)

    def health(self) -> str:
        answer = self.client("autoscaling").describe_auto_scaling_instances(InstanceIds=[self.instance_id])
        return str(answer["AutoScalingInstances"][0]["HealthStatus"])


@contextmanager
def cloud() -> Iterator[Cloud]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield _furnished(f"http://{host}:{port}")
    finally:
        server.stop()


def _furnished(url: str) -> Cloud:
    empty = Cloud(url, "", "", "")
    ec2, scaling = empty.client("ec2"), empty.client("autoscaling")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    scaling.create_launch_configuration(LaunchConfigurationName="server", ImageId=image, InstanceType="g6.xlarge")
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        LaunchConfigurationName="server",
        MinSize=1,
        MaxSize=1,
        VPCZoneIdentifier=subnet,
    )
    scaling.put_lifecycle_hook(
        AutoScalingGroupName=GROUP,
        LifecycleHookName=HOOK,
        LifecycleTransition="autoscaling:EC2_INSTANCE_TERMINATING",
        HeartbeatTimeout=60,
    )
    [group] = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    instance = group["Instances"][0]["InstanceId"]
    [described] = ec2.describe_instances(InstanceIds=[instance])["Reservations"]
    return Cloud(url, instance, described["Instances"][0]["PrivateIpAddress"], vpc)
