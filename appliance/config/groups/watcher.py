"""What announces that the machine is about to go, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.config.declaration import setting

Reaction = Literal["drain", "deregister", "complete-lifecycle", "mark-unhealthy", "notify"]

_REACTIONS = (
    "drain: the server takes no more than can still finish. deregister: leave the load balancer's target groups. "
    "complete-lifecycle: keep Auto Scaling's termination hook waiting until the drain is over, then let it go on. "
    "mark-unhealthy: after the drain, have Auto Scaling replace the instance. notify: tell webhook-url and "
    "sns-topic-arn. [] does nothing but log."
)


@dataclass(frozen=True)
class WatcherSettings:
    """`pagebox spot-watcher`: what announces that the machine is about to go, and what is done about it."""

    on_spot_interruption: tuple[Reaction, ...] = setting(
        ("drain", "deregister", "complete-lifecycle", "notify"),
        purpose=f"What to do when EC2 takes a spot instance back, two minutes ahead at best. {_REACTIONS}",
        throughput="Decides which requests survive the machine.",
        typical="The default.",
    )
    on_rebalance_recommendation: tuple[Reaction, ...] = setting(
        ("notify",),
        purpose="What to do when EC2 expects a spot instance to be interrupted, at a time that nobody knows and "
        "perhaps never; the words are those of on-spot-interruption. Draining here is for groups that replace the "
        "instance by themselves (capacity rebalancing): they will terminate it anyway.",
        throughput="Draining takes the machine out of service until it is replaced or started again.",
        typical="notify; drain, deregister, notify with capacity rebalancing.",
    )
    on_scheduled_maintenance: tuple[Reaction, ...] = setting(
        ("drain", "deregister", "notify"),
        purpose="What to do about a reboot, stop or retirement that EC2 has scheduled; the words are those of "
        "on-spot-interruption. notify tells as soon as it is announced, the rest waits until maintenance-lead-time "
        "before a reboot; a retirement or stop is acted on at once.",
        throughput="Draining takes the machine out of service until it is rebooted or replaced.",
        typical="The default; with mark-unhealthy in an Auto Scaling group.",
    )
    on_auto_scaling_termination: tuple[Reaction, ...] = setting(
        ("drain", "deregister", "complete-lifecycle", "notify"),
        purpose="What to do when Auto Scaling is about to terminate the instance; the words are those of "
        "on-spot-interruption. Needs a termination hook in the group to have time for anything.",
        throughput="Decides which requests survive the machine.",
        typical="The default.",
    )
    on_gpu_failure: tuple[Reaction, ...] = setting(
        ("drain", "deregister", "notify"),
        purpose="What to do when a GPU reports one of fatal-xids, memory errors that its ECC could not correct, or is "
        "lost; the words are those of on-spot-interruption. Works on any machine with an NVIDIA driver. It holds until "
        "the machine is rebooted.",
        throughput="Draining takes the machine out of service until it is rebooted or replaced.",
        typical="The default; with mark-unhealthy in an Auto Scaling group.",
    )
    fatal_xids: tuple[int, ...] = setting(
        (48, 62, 64, 74, 79, 95, 119, 120, 140),
        purpose="Numbers of the NVIDIA driver's Xid messages in the kernel's log that mean a broken GPU rather than a "
        "broken program. Every Xid is counted, whatever its number.",
        typical="The default: uncorrectable memory errors, NVLink, a GPU off its bus or whose firmware hangs.",
        minimum=1,
    )
    notice_margin: float = setting(
        12.0,
        purpose="Seconds between the end of the drain and the moment that EC2 has announced, for sending the last "
        "tokens and stopping in order.",
        throughput="A greater one ends more requests before they are done.",
        typical="12.",
        minimum=0,
        maximum=90,
    )
    maintenance_lead_time: float = setting(
        300.0,
        purpose="Seconds before a scheduled reboot at which it is acted on.",
        throughput="So long the machine is out of service before each reboot.",
        typical="300: the load balancer's deregistration delay; longer than the longest request.",
        minimum=0,
    )
    target_groups: tuple[str, ...] = setting(
        (),
        purpose="Names or ARNs of the load balancer's target groups that deregister leaves.",
        typical="Unset; named where the account has hundreds of groups, or the role may not list them.",
        when_unset="All that have this instance, by its id or its address.",
    )
    lifecycle_hooks: tuple[str, ...] = setting(
        (),
        purpose="Names of the Auto Scaling termination hooks that complete-lifecycle completes.",
        typical="Unset; named where another program completes one of several hooks.",
        when_unset="All termination hooks of the instance's group.",
    )
    webhook_url: tuple[str, ...] = setting(
        (),
        purpose="URLs that notify sends each event to, as JSON by POST: when it is announced, when it moves, when it "
        "is over. The field `text` is a sentence, as chat services show it.",
        typical="The incoming webhook of a chat channel.",
        when_unset="No webhook is called.",
        secret=True,
    )
    sns_topic_arn: str | None = setting(
        None,
        purpose="ARN of the SNS topic that notify publishes the same to.",
        typical="arn:aws:sns:REGION:ACCOUNT:NAME.",
        when_unset="Nothing is published.",
    )
    imds_endpoint: str | None = setting(
        None,
        purpose="Where the instance metadata service answers.",
        typical="Unset.",
        when_unset="http://169.254.169.254, or http://[fd00:ec2::254] where only that one answers.",
    )
    watcher_state_dir: str | None = setting(
        None,
        purpose="Folder in which the watcher keeps what it has seen and done (events.json), so that a restart repeats "
        "nothing, and its metrics (spot-watcher.prom).",
        typical="Unset: systemd says it.",
        when_unset="$STATE_DIRECTORY, which systemd sets; else /var/lib/pagebox/spot-watcher.",
    )
    watcher_textfile: str | None = setting(
        None,
        purpose="File that the watcher writes its metrics to, for the textfile collector of Prometheus' node exporter.",
        typical="/var/lib/prometheus/node-exporter/pagebox-spot-watcher.prom.",
        when_unset="spot-watcher.prom in watcher-state-dir.",
    )
    watcher_metrics_port: int | None = setting(
        None,
        purpose="Port on 127.0.0.1 where the watcher serves the same metrics at /metrics.",
        typical="Unset; 9464 where there is no node exporter.",
        when_unset="None.",
        minimum=0,
        maximum=65535,
    )
