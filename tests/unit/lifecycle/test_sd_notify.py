"""What systemd hears, on a socket of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lifecycle.sd_notify import ServiceManager, service_manager
from appliance.lifecycle.socket_activation import inherited_sockets


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        yield listener


def heard(systemd: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in systemd.recv(4096).decode().split("\n"))


def test_every_message_is_in_the_protocol(systemd: socket.socket) -> None:
    manager = ServiceManager(systemd.getsockname())
    manager.ready("Listening")
    assert heard(systemd) == {"READY": "1", "STATUS": "Listening"}
    manager.status("3 running")
    assert heard(systemd) == {"STATUS": "3 running"}
    manager.extend_timeout(1.5)
    assert heard(systemd) == {"EXTEND_TIMEOUT_USEC": "1500000"}
    manager.watchdog()
    assert heard(systemd) == {"WATCHDOG": "1"}
    manager.stopping("Draining")
    assert heard(systemd) == {"STOPPING": "1", "STATUS": "Draining"}


def test_a_reload_carries_the_monotonic_clock_of_its_begin(systemd: socket.socket) -> None:
    before = time.monotonic_ns() // 1000
    ServiceManager(systemd.getsockname()).reloading()
    message = heard(systemd)
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000


def test_a_status_of_several_lines_smuggles_nothing_in(systemd: socket.socket) -> None:
    ServiceManager(systemd.getsockname()).status("broken\nMAINPID=1")
    assert heard(systemd) == {"STATUS": "broken MAINPID=1"}


def test_a_name_in_the_abstract_name_space_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0pagebox-test-{os.getpid()}")
        ServiceManager(f"@pagebox-test-{os.getpid()}").watchdog()
        assert heard(listener) == {"WATCHDOG": "1"}


def test_without_a_manager_or_when_it_is_gone_nothing_happens(tmp_path: Path) -> None:
    assert not service_manager({}).is_there
    service_manager({}).ready("Listening")
    ServiceManager(str(tmp_path / "gone")).ready("Listening")


def test_a_manager_that_does_not_read_holds_nobody_up(systemd: socket.socket) -> None:
    manager = ServiceManager(systemd.getsockname())
    for _ in range(20):  # more than the kernel keeps, /proc/sys/net/unix/max_dgram_qlen
        manager.watchdog()
    assert heard(systemd) == {"WATCHDOG": "1"}


def test_the_environment_says_who_listens_and_is_not_handed_on_to_children() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    manager = service_manager(environment)
    assert manager.is_there
    assert manager.watchdog_seconds == 30
    assert environment == {}


def test_a_watchdog_that_waits_for_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    assert service_manager(environment).watchdog_seconds is None


def test_inherited_sockets_come_by_name_and_stay_with_this_process(tmp_path: Path) -> None:
    """In a process of its own, whose descriptors from 3 on are ours to choose."""
    program = """
import os, socket
from appliance.lifecycle.socket_activation import inherited_sockets
os.environ["LISTEN_PID"] = str(os.getpid())
found = inherited_sockets()
print({name: [one.getsockname() for one in sockets] for name, sockets in found.items()})
print([os.get_inheritable(one.fileno()) for sockets in found.values() for one in sockets])
print([name for name in os.environ if name.startswith("LISTEN_")])
"""
    launcher = f"""
import os, socket, sys
listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for listener, name in zip(listeners, ("a", "b")):
    listener.bind(name)
copies = [os.dup2(os.dup(one.fileno()), 50 + index) for index, one in enumerate(listeners)]
for index, copy in enumerate(copies):
    os.dup2(copy, 3 + index)
os.environ |= {{"LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:admin"}}
os.execv(sys.executable, [sys.executable, "-c", {program!r}])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", launcher], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.splitlines() == ["{'http': ['a'], 'admin': ['b']}", "[False, False]", "[]"]


def test_sockets_meant_for_another_process_are_left_alone() -> None:
    assert inherited_sockets({"LISTEN_FDS": "1", "LISTEN_PID": "1"}) == {}
    assert inherited_sockets({}) == {}
