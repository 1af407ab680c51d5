"""Sockets that the service manager listens at on our behalf: the protocol of sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def inherited_sockets(environment: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """By the name that FileDescriptorName= gave them. Empty without socket activation.

    They outlive this process: what connects while nobody accepts waits in the kernel for the next one. The variables
    are removed, and the descriptors are closed on exec: they are not for children.
    """
    count = int(environment.pop("LISTEN_FDS", "0"))
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if environment.pop("LISTEN_PID", None) != str(os.getpid()):
        return {}
    found: dict[str, list[socket.socket]] = {}
    for index in range(count):
        descriptor = FIRST_DESCRIPTOR + index
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
        listener.setblocking(False)
        found.setdefault(names[index] if index < len(names) else "", []).append(listener)
    return found
