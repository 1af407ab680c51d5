"""What an engine process tells systemd, heard on a socket of its own. The model counts instead of computing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.config import ModelSettings, Settings, settings_to_json

from .conftest import NULL_ENGINE


class Systemd:
    """The receiving end of $NOTIFY_SOCKET."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener

    def until(self, name: str, value: str | None = None) -> list[dict[str, str]]:
        """All messages up to the first that has this assignment."""
        messages: list[dict[str, str]] = []
        while not messages or name not in messages[-1] or value not in (None, messages[-1][name]):
            text = self._listener.recv(65536).decode()
            messages.append(dict(line.split("=", 1) for line in text.split("\n")))
        return messages


@contextmanager
def engine(
    folder: Path, model: str, watchdog_seconds: float = 0.4
) -> Iterator[tuple[subprocess.Popen[bytes], Systemd]]:
    settings_file = folder / "settings.json"
    settings_file.write_bytes(settings_to_json(Settings(model=ModelSettings(model=model))))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(folder / "notify"))
        listener.settimeout(20)
        variables = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(round(watchdog_seconds * 1e6))}
        command = [sys.executable, str(NULL_ENGINE), "--socket", str(folder / "engine.sock")]
        process = subprocess.Popen([*command, "--settings", str(settings_file)], env=os.environ | variables)
        try:
            yield process, Systemd(listener)
        finally:
            process.kill()
            process.wait()


def test_ready_comes_after_a_decoded_token_and_the_start_is_extended_while_bytes_load_alone(tmp_path: Path) -> None:
    with engine(tmp_path, "slow-start") as (_, systemd):
        messages = systemd.until("READY")
        loading = [message["STATUS"] for message in messages if message.get("STATUS", "").startswith("Loading weights")]
        assert loading[-1] == "Loading weights: 80%, Reading a very long file"
        assert len([message for message in messages if "EXTEND_TIMEOUT_USEC" in message]) == len(loading)
        assert messages[-2] == {"STATUS": "Warming up: Decoding a first token"}
        assert messages[-1] == {"READY": "1", "STATUS": "Ready, idle"}


def test_an_idle_engine_feeds_the_watchdog_and_a_stopped_one_does_not(tmp_path: Path) -> None:
    with engine(tmp_path, "counting") as (process, systemd):
        for _ in range(3):
            systemd.until("WATCHDOG")
        process.send_signal(signal.SIGSTOP)
        systemd._listener.settimeout(1.5)
        try:
            for _ in range(3):  # what was on its way
                systemd.until("WATCHDOG")
        except TimeoutError:
            return
        raise AssertionError("a process that is stopped fed the watchdog")


def test_sigterm_is_told_before_the_end(tmp_path: Path) -> None:
    with engine(tmp_path, "counting") as (process, systemd):
        systemd.until("READY")
        process.terminate()
        systemd.until("STOPPING", "1")
        assert process.wait(20) == 0


def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    with engine(tmp_path, "impossible") as (process, systemd):
        messages = systemd.until("STATUS", "Failed: These settings contradict each other; change one")
        assert not [message for message in messages if "READY" in message]
        assert process.wait(20) == 2
