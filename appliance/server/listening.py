"""The sockets that clients connect to, and where they are."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.config import ServerSettings

BACKLOG = 1024  # connections that wait to be accepted, as when a few hundred clients begin at once

# What waits in a socket that outlives its servers had better wait a little longer than be refused by one that still has
# to load its tokenizer. But not for an engine that is loading a model.
SETTLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Listening:
    sockets: list[socket.socket]  # several where the host's name has several addresses
    url: str  # with the port that was taken for port 0
    outlives_us: bool = False  # the service manager holds the sockets too, for the server that comes after this one

    def close(self) -> None:
        for listener in self.sockets:
            listener.close()


def listen(settings: ServerSettings, inherited: Sequence[socket.socket] = ()) -> Listening:
    """At `inherited` sockets, if there are any. Raises OSError, or ssl.SSLError for an unusable certificate."""
    if inherited:
        tls_context(settings)
        return Listening(list(inherited), ", ".join(map(_address, inherited)), outlives_us=True)
    if settings.uds is not None:
        return Listening([_unix_listener(Path(settings.uds))], f"unix:{settings.uds}")
    scheme = "http" if tls_context(settings) is None else "https"
    sockets = _tcp_listeners(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return Listening(sockets, f"{scheme}://{host}:{sockets[0].getsockname()[1]}{settings.root_path}")


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """None: plain HTTP."""
    if settings.ssl_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
    return context


def _tcp_listeners(host: str, port: int) -> list[socket.socket]:
    """One socket an address of `host`, all at one port."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = port or (listeners[0].getsockname()[1] if len(listeners) > 1 else 0)
            listener.bind((address[0], taken, *address[2:]))
            listener.listen(BACKLOG)
    except OSError:
        Listening(listeners, "").close()
        raise
    return listeners


def _unix_listener(path: Path) -> socket.socket:
    if path.is_socket():  # of a server that was killed
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"unix:{name}" if listener.family == socket.AF_UNIX else f"{name[0]}:{name[1]}"
