"""A Debian in a folder, booted by systemd-nspawn with systemd as process 1, and looked at from outside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PACKAGES = "systemd,systemd-sysv,dbus,udev,nginx-light,python3.11,libpython3.11-stdlib,ca-certificates,procps,iproute2"
ROOT_SECONDS = 300
BOOT_SECONDS = 60
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}  # in there, nothing of this machine's


def why_not() -> str | None:
    """Why this machine does not boot another one; None if it does. It takes minutes and memory, so it is asked for."""
    if "SYSTEM_TESTS" not in os.environ:
        return "is asked for with SYSTEM_TESTS=1"
    if os.geteuid() != 0:
        return "needs root"
    for program in ("systemd-nspawn", "mmdebstrap", "nsenter", "dpkg-deb"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return "needs a writable /sys/fs/cgroup"
    return None


def debian_sources() -> list[str]:
    """Lines for sources.list: where this machine gets Debian from, updates and security included."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {tuple(line.split()[:2]) for line in told.splitlines() if line.endswith(" Debian")}
    return [f"deb {uri} {suite} main" for uri, suite in sorted(found)]


def make_root(folder: Path, package: Path) -> None:
    """A minimal Debian with the package in it."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": "0"}
    command = ["mmdebstrap", "--variant=minbase", "--dpkgopt=force-unsafe-io", f"--include={PACKAGES}"]
    command += [f"--customize-hook=upload {package} /pagebox.deb", "bookworm", str(folder), "-"]
    subprocess.run(
        command, input="\n".join(debian_sources()), text=True, check=True, timeout=ROOT_SECONDS, env=environment
    )


@dataclass
class Answer:
    status: int  # 0: no answer
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Booted:
    """A machine that runs. `pid` is its process 1, as this machine counts."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> str:
        """What a command in there prints."""
        spaces = ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--"]
        done = subprocess.run(
            [*spaces, *command], capture_output=True, text=True, check=False, timeout=timeout, env=ENVIRONMENT
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}\n{self.state()}")
        return done.stdout.strip()

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def journal(self, unit: str, lines: int = 40) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", str(lines), "-u", unit, check=False)

    def main_process(self, unit: str) -> psutil.Process:
        """Seen from this machine."""
        inside = int(self.show(unit, "MainPID"))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
                if numbers[-1] == str(inside) and len(numbers) > 1 and self._is_in_it(process.pid):
                    return process
        raise AssertionError(f"{unit} has no process")

    def _is_in_it(self, pid: int) -> bool:
        return Path(f"/proc/{pid}/ns/pid").readlink() == Path(f"/proc/{self.pid}/ns/pid").readlink()

    def https(self, path: str, key: str | None = None, body: Any = None, seconds: float = 120) -> Answer:
        """Through the front, over its network."""
        command = ["nsenter", "-t", str(self.pid), "-n", "--", "curl", "-sk", "--max-time", str(seconds)]
        command += ["-w", "\n%{http_code}", f"https://127.0.0.1{path}"]
        if key is not None:
            command += ["-H", f"Authorization: Bearer {key}"]
        if body is not None:
            command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
        told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        text, _, status = told.rpartition("\n")
        return Answer(int(status or 0), text)

    def eventually(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.2)

    def state(self) -> str:
        """For people, when something did not happen."""
        units = self.systemctl("--no-pager", "status", "pagebox*", "nginx", check=False)
        look = "tail -n 20 /var/log/nginx/*error.log; nginx -t -c /etc/pagebox/nginx.conf 2>&1"
        front = self.run("sh", "-c", look, check=False)
        return f"{units}\n{self.journal('nginx', 40)}\n{self.journal('pagebox*', 60)}\n{front}"


@contextmanager
def booted(root: Path, log: Path, binds: dict[Path, str]) -> Iterator[Booted]:
    """Boot `root`; folders of this machine are seen in there, read-only. Power it off at the end."""
    command = [
        "systemd-nspawn",
        "--quiet",
        "-D",
        str(root),
        "--boot",
        "--private-network",
        "--register=no",
        "--keep-unit",
    ]
    command += ["--console=pipe", "--capability=all", "--system-call-filter=bpf"]
    command += [f"--bind-ro={folder}:{where}" for folder, where in binds.items()]
    with log.open("ab") as console:
        nspawn = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            env=os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
    try:
        machine = Booted(_process_1(nspawn, log))
        assert machine.systemctl("is-system-running", "--wait", check=False) in ("running", "degraded")
        yield machine
        machine.systemctl("poweroff", "--no-block", check=False)
        nspawn.wait(60)
    finally:
        if nspawn.poll() is None:
            nspawn.send_signal(signal.SIGKILL)
            nspawn.wait()
        _remove_control_groups()


@contextmanager
def metadata_network(machine: Booted) -> Iterator[list[str]]:
    """A network in which `machine` finds 169.254.169.254. Yields what a command begins with that runs in it."""
    name = f"metadata-{machine.pid}"
    inside = ["nsenter", "-t", str(machine.pid), "-n", "--", "ip"]
    outside = ["ip", "netns", "exec", name]
    commands = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", "to-metadata", "type", "veth", "peer", "name", "to-machine", "netns", name],
        ["ip", "link", "set", "to-metadata", "netns", str(machine.pid)],
        [*inside, "addr", "add", "169.254.169.1/24", "dev", "to-metadata"],
        [*inside, "link", "set", "to-metadata", "up"],
        [*outside, "ip", "addr", "add", "169.254.169.254/24", "dev", "to-machine"],
        [*outside, "ip", "link", "set", "to-machine", "up"],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield outside
    finally:
        subprocess.run([*inside, "link", "delete", "to-metadata"], check=False)
        subprocess.run(["ip", "netns", "delete", name], check=False)


def _process_1(nspawn: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < deadline and nspawn.poll() is None:
        for child in psutil.Process(nspawn.pid).children():
            with contextlib.suppress(psutil.Error):
                if child.name() == "systemd" and Path(f"/proc/{child.pid}/root/run/dbus/system_bus_socket").exists():
                    return child.pid
        time.sleep(0.1)
    raise AssertionError(f"it did not boot: {log.read_text(errors='replace')[-2000:]}")


def _remove_control_groups() -> None:
    """nspawn leaves the machine's own below the same name each time."""
    for folder in sorted(Path("/sys/fs/cgroup/payload").rglob("*"), reverse=True):
        if folder.is_dir():
            with contextlib.suppress(OSError):
                folder.rmdir()
    with contextlib.suppress(OSError):
        Path("/sys/fs/cgroup/payload").rmdir()
