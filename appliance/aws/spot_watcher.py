"""`pagebox spot-watcher`: monitors, actions and store put together from the settings."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import web

from appliance.aws.actions.action import Action
from appliance.aws.actions.auto_scaling import CompleteLifecycle, MarkUnhealthy
from appliance.aws.actions.drain import Drain
from appliance.aws.actions.notify import Notify, Sender, SnsTopic, Webhook
from appliance.aws.actions.target_groups import DeregisterTargets
from appliance.aws.admin_client import AdminClient
from appliance.aws.clients import AwsClients
from appliance.aws.events import Kind
from appliance.aws.imds import IPV4_ENDPOINT, IPV6_ENDPOINT, Imds
from appliance.aws.kernel_log import KernelLog, open_kernel_log
from appliance.aws.machine import Machine, find_machine, looks_like_ec2
from appliance.aws.monitors.auto_scaling_state import AutoScalingStateMonitor
from appliance.aws.monitors.gpu_memory import GpuMemoryMonitor
from appliance.aws.monitors.maintenance import MaintenanceMonitor
from appliance.aws.monitors.monitor import Monitor
from appliance.aws.monitors.rebalance import RebalanceMonitor
from appliance.aws.monitors.spot_interruption import SpotInterruptionMonitor
from appliance.aws.monitors.xid import XidMonitor
from appliance.aws.nvml import Nvml
from appliance.aws.store import EventStore, boot_id, write_atomically
from appliance.aws.watcher import Watcher
from appliance.aws.watcher_metrics import WatcherMetrics
from appliance.config.groups.watcher import Reaction, WatcherSettings
from appliance.lifecycle.sd_notify import ServiceManager

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
STATE_FOLDER = Path("/var/lib/pagebox/watcher")


@dataclass(frozen=True)
class Surroundings:
    """What of this machine is looked at, beside the metadata service."""

    kernel_log: KernelLog | None  # None: no NVIDIA driver writes to it
    nvml: Nvml | None
    looks_like_ec2: bool
    boot_id: str
    hostname: str


def this_machine() -> Surroundings:
    has_gpu = NVIDIA_DRIVER.exists()
    return Surroundings(
        kernel_log=open_kernel_log() if has_gpu else None,
        nvml=_nvml() if has_gpu else None,
        looks_like_ec2=looks_like_ec2(),
        boot_id=boot_id(),
        hostname=socket.gethostname(),
    )


class SpotWatcher:
    """Everything of one `pagebox spot-watcher`."""

    def __init__(self, settings: WatcherSettings, admin_socket: str, surroundings: Surroundings, folder: Path) -> None:
        """`folder` is for what has to survive a restart."""
        reactions = _reactions(settings)
        self._settings = settings
        self._surroundings = surroundings
        self._textfile = Path(settings.watcher_textfile or folder / "spot-watcher.prom")
        self._sender = Sender(surroundings.hostname)
        self._drain = Drain(
            AdminClient(admin_socket),
            {kind for kind, words in reactions.items() if "drain" in words},
            settings.notice_margin,
        )
        store = EventStore(folder / "events.json", surroundings.boot_id, _now)
        self._metrics = WatcherMetrics()
        self._metrics.show_records(lambda: store.records)
        self._watcher = Watcher(store, reactions, self._metrics, _now)

    async def run(self, manager: ServiceManager) -> None:
        """Until cancelled. Raises OSError when the metrics port is taken."""
        notifiers = [Notify(hook.name, hook.send, self._sender) for hook in map(Webhook, self._settings.webhook_url)]
        reporting = asyncio.create_task(self._report(manager))
        try:
            async with (
                _serving(self._metrics, self._settings.watcher_metrics_port),
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False) as session,
            ):
                self._watcher.add(self._gpu_monitors(), {"drain": [self._drain], "notify": notifiers})
                manager.ready("Looking for EC2's metadata service")
                services = [Imds(session, endpoint) for endpoint in _endpoints(self._settings)]
                machine, imds = await find_machine(services, looks_like_ec2=self._surroundings.looks_like_ec2)
                self._sender.machine = machine
                self._metrics.is_on_ec2()
                manager.status(f"Watching the notices for {machine.instance_id} in {machine.availability_zone}")
                log.info("Watching the notices for %s at %s", machine.instance_id, imds.endpoint)
                self._watcher.add(self._ec2_monitors(imds, machine), self._aws_actions(imds, machine))
                await asyncio.Event().wait()
        finally:
            manager.stopping("Stopping")
            reporting.cancel()
            await self._watcher.close()
            if self._surroundings.kernel_log is not None:
                await self._surroundings.kernel_log.close()

    def _gpu_monitors(self) -> list[Monitor]:
        monitors: list[Monitor] = []
        if self._surroundings.kernel_log is not None:
            xids = XidMonitor(self._surroundings.kernel_log, self._settings.fatal_xids)
            self._metrics.show_xids(xids.counts)
            monitors.append(xids)
        if self._surroundings.nvml is not None:
            memory = GpuMemoryMonitor(self._surroundings.nvml)
            self._metrics.show_uncorrected_errors(lambda: memory.uncorrected)
            monitors.append(memory)
        return monitors

    def _ec2_monitors(self, imds: Imds, machine: Machine) -> list[Monitor]:
        return [
            SpotInterruptionMonitor(imds, machine.instance_id),
            RebalanceMonitor(imds, machine.instance_id),
            MaintenanceMonitor(imds, self._settings.maintenance_lead_time),
            AutoScalingStateMonitor(imds, machine.instance_id),
        ]

    def _aws_actions(self, imds: Imds, machine: Machine) -> dict[Reaction, list[Action]]:
        settings, clients = self._settings, AwsClients(machine.region, imds.endpoint)
        topics = [SnsTopic(clients, settings.sns_topic_arn)] if settings.sns_topic_arn else []
        return {
            "deregister": [DeregisterTargets(clients, machine, settings.target_groups)],
            "complete-lifecycle": [CompleteLifecycle(clients, machine, settings.lifecycle_hooks, self._drain)],
            "mark-unhealthy": [MarkUnhealthy(clients, machine, self._drain)],
            "notify": [Notify(topic.name, topic.send, self._sender) for topic in topics],
        }

    async def _report(self, manager: ServiceManager) -> None:
        """The textfile, and the sign of life that the service manager waits for."""
        problem = ""
        while True:
            manager.watchdog()
            try:
                write_atomically(self._textfile, self._metrics.exposition(), mode=0o644)
                problem = ""
            except OSError as error:
                if problem != str(error):
                    log.warning("The metrics cannot be written to %s: %s", self._textfile, error.strerror)
                problem = str(error)
            await asyncio.sleep(REPORT_SECONDS)


def state_folder(settings: WatcherSettings, environ: Mapping[str, str]) -> Path:
    """Where the watcher keeps what it knows."""
    named = settings.watcher_state_dir or environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(named) if named else STATE_FOLDER


def _reactions(settings: WatcherSettings) -> dict[Kind, Sequence[Reaction]]:
    return {
        Kind.SPOT_INTERRUPTION: settings.on_spot_interruption,
        Kind.REBALANCE_RECOMMENDATION: settings.on_rebalance_recommendation,
        Kind.SCHEDULED_MAINTENANCE: settings.on_scheduled_maintenance,
        Kind.AUTO_SCALING_TERMINATION: settings.on_auto_scaling_termination,
        Kind.GPU_FAILURE: settings.on_gpu_failure,
    }


def _endpoints(settings: WatcherSettings) -> tuple[str, ...]:
    return (settings.imds_endpoint,) if settings.imds_endpoint else (IPV4_ENDPOINT, IPV6_ENDPOINT)


def _nvml() -> Nvml | None:
    try:
        return Nvml()
    except OSError as error:
        log.warning("NVML cannot be loaded (%s): GPU memory errors are only seen in the kernel's log", error)
        return None


def _now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def _serving(metrics: WatcherMetrics, port: int | None) -> AsyncIterator[None]:
    """/metrics on this machine's own address, if there is to be a port."""
    if port is None:
        yield
        return

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, handle_signals=False, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
    finally:
        await runner.cleanup()
