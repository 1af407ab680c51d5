"""The command itself, beside doubles of everything around it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from tests.support.admin_double import AdminDouble
from tests.support.aws_server import CREDENTIALS, Cloud
from tests.support.eventually import eventually
from tests.support.imds_double import SPOT, ImdsDouble
from tests.support.watcher_process import running_watcher

ROOT = Path(__file__).parents[3]


def notice(seconds: float) -> tuple[str, str]:
    """A spot notice, and when the drain has to end."""
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    text = f'{{"action": "terminate", "time": "{moment:%Y-%m-%dT%H:%M:%SZ}"}}'
    return text, f"{moment - timedelta(seconds=12):%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture
async def imds() -> AsyncIterator[ImdsDouble]:
    async with ImdsDouble().serving() as double:
        yield double


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[AdminDouble]:
    async with AdminDouble().serving(tmp_path / "admin.sock") as double:
        yield double


class Hook:
    """A webhook."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.received.append(await request.json())
        return web.Response()


@pytest.fixture
async def webhook() -> AsyncIterator[Hook]:
    hook = Hook()
    app = web.Application()
    app.router.add_post("/secret", hook.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hook.url = f"http://127.0.0.1:{runner.addresses[0][1]}/secret"
    yield hook
    await runner.cleanup()


@pytest.mark.slow
async def test_a_spot_notice_from_announcement_to_cancellation(
    tmp_path: Path, aws: Cloud, imds: ImdsDouble, server: AdminDouble, webhook: Hook
) -> None:
    """Announced; the watcher killed and started again; moved; withdrawn."""
    arn = aws.target_group("chat")
    aws.register(arn, aws.instance_id)
    imds.values["meta-data/instance-id"] = aws.instance_id
    imds.values[SPOT], ends = notice(120)
    flags = ("--imds-endpoint", imds.url, "--webhook-url", webhook.url)
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": aws.url}

    async with running_watcher(tmp_path, *flags, end=signal.SIGKILL, **environment):
        await eventually(lambda: server.state == "draining" and webhook.received and not aws.targets(arn))
        assert server.posts[0]["deadline"] == ends
        assert webhook.received[0]["instance_id"] == aws.instance_id
        await eventually(lambda: '"deregister"' in (tmp_path / "events.json").read_text())

    server.state = "serving"  # it was restarted too
    async with running_watcher(tmp_path, *flags, **environment) as log:
        await eventually(lambda: server.state == "draining")
        assert (len(server.posts), len(webhook.received)) == (2, 1)
        imds.values[SPOT], ends = notice(60)
        await eventually(lambda: server.deadline == ends and len(webhook.received) == 2)
        assert webhook.received[1]["phase"] == "moved"
        assert "pagebox:spot_notice 1.0" in (tmp_path / "spot-watcher.prom").read_text()
        del imds.values[SPOT]
        await eventually(lambda: server.state == "serving" and aws.targets(arn) and len(webhook.received) == 3, 40)
        assert webhook.received[2]["phase"] == "over"
    assert webhook.url not in log.read_text(), "the URL is a secret"
    assert imds.without_token == []
    assert json.loads((tmp_path / "events.json").read_text())["records"] == []


async def test_elsewhere_it_says_so_once_and_watches_nothing(tmp_path: Path, imds: ImdsDouble) -> None:
    imds.token_status = 404
    async with running_watcher(tmp_path, "--imds-endpoint", imds.url) as log:
        if "Amazon EC2" in log.read_text():  # pragma: no cover
            pytest.skip("this machine is an EC2 instance")
        await eventually(lambda: "no EC2 instance" in log.read_text())
        await asyncio.sleep(1)
    assert log.read_text().count("\n") == 1


async def test_metrics_are_served_on_a_port(tmp_path: Path, imds: ImdsDouble, unused_tcp_port: int) -> None:
    flags = ("--imds-endpoint", imds.url, "--watcher-metrics-port", str(unused_tcp_port))
    async with running_watcher(tmp_path, *flags) as log, ClientSession() as session:
        await eventually(lambda: "Watching" in log.read_text())
        async with session.get(f"http://127.0.0.1:{unused_tcp_port}/metrics") as response:
            assert "pagebox:watcher_on_ec2 1.0" in await response.text()


async def test_systemd_is_told_when_it_watches(tmp_path: Path, imds: ImdsDouble) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        told: list[str] = []

        def messages() -> str:
            try:
                while True:
                    told.append(manager.recv(4096).decode())
            except BlockingIOError:
                return "\n".join(told)

        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
        async with running_watcher(tmp_path, "--imds-endpoint", imds.url, **variables):
            await eventually(lambda: "STATUS=Watching the notices for i-0123456789abcdef0" in messages())
        assert {"READY=1", "WATCHDOG=1", "STOPPING=1"} <= set(messages().splitlines())


def may_make_namespaces() -> bool:
    script = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo && ip addr add fd00:ec2::254/128 dev lo"
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254"])
def test_the_real_address_needs_no_setting(tmp_path: Path, address: str) -> None:
    """Metadata, and the credentials of the instance's role for AWS's own API, in a network of their own."""
    try:
        possible = may_make_namespaces()
    except OSError:
        possible = False
    if not possible:
        pytest.skip("network namespaces cannot be made here (needs root, unshare and ip)")
    bits = 128 if ":" in address else 32
    setup = f"ip link set lo up && ip addr add {address}/{bits} dev lo"
    program = ROOT / "tests" / "integration" / "aws" / "real_address.py"
    command = f'{setup} && exec "{sys.executable}" "{program}" "{tmp_path}" {address}'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
