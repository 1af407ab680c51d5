"""What a process tells the service manager that started it, in the protocol of sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

PATIENCE_SECONDS = 0.1  # for a manager that does not read; it is asked from event loops


class ServiceManager:
    """systemd, if it started this process with Type=notify; otherwise nobody, and every call does nothing.

    A message that cannot be sent is dropped: a service goes on when its manager hangs, or is being restarted.
    """

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        """`address`: a path, or `@` and a name in the abstract name space. `watchdog_seconds`: `watchdog` has to be
        called more often than that; None: nobody waits for it."""
        self.watchdog_seconds = watchdog_seconds
        self._address = "\0" + address[1:] if address and address.startswith("@") else address

    @property
    def is_there(self) -> bool:
        return self._address is not None

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """One line that `systemctl status` shows."""
        self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    def extend_timeout(self, seconds: float) -> None:
        """The start or stop under way may take this long from now on."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def watchdog(self) -> None:
        """This process works; asked for every `watchdog_seconds`."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(line.replace("\n", " ") for line in assignments).encode()
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.settimeout(PATIENCE_SECONDS)
            channel.sendto(message, self._address)


def service_manager(environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """Who `environment` says wants to hear of this process. Its variables are removed: they are not for children."""
    address = environment.pop("NOTIFY_SOCKET", None)
    microseconds = environment.pop("WATCHDOG_USEC", None)
    pid = environment.pop("WATCHDOG_PID", None)
    for_us = microseconds is not None and pid in (None, str(os.getpid()))
    return ServiceManager(address or None, int(microseconds or 0) / 1e6 if for_us else None)
