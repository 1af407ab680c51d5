"""The engine's end of its Unix socket: many connections, one thread, never waiting for a slow peer."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from enum import Enum
from pathlib import Path

import msgspec

from appliance.engine.frames import FrameError, FrameSplitter
from appliance.protocol.wire import FromEngine, ToEngine, decode_to_engine, encode

log = logging.getLogger(__name__)

# What may wait for a server that does not read. A step of 256 requests with 20 logprobs each is about 150 KB, so this
# is minutes of output. A server further behind is stuck, and holding its answers would take the memory of the engine.
MAX_UNSENT_BYTES = 64 * 2**20
RECEIVE_BYTES = 2**18


class Change(Enum):
    """What can happen to a connection besides a message."""

    OPENED = "opened"
    CLOSED = "closed"


class Connection:
    """One server. Compared by identity; belongs to its `Hub`."""

    def __init__(self, number: int, peer: socket.socket) -> None:
        self.number = number
        self.socket = peer
        self.splitter = FrameSplitter()
        self.unsent = bytearray()
        self.open = True


Event = tuple[Connection, ToEngine | Change]


class Hub:
    """Accepts connections at `path`. Not thread-safe, except for `wake`."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        """Listen. `mode` says who may connect: nobody but the current user, unless it is wider. Raises `OSError` when
        another engine answers at `path`, or the folder does not exist."""
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        _remove_stale_socket(path)
        self._listener.bind(str(path))
        path.chmod(mode)
        self._listener.listen()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._connections: list[Connection] = []
        self._dropped: list[Connection] = []
        self._count = 0

    def poll(self, timeout: float | None) -> list[Event]:
        """What happened since the last call, in order. Waits until something does, or for `wake`, but no longer than
        `timeout` seconds; None: as long as it takes."""
        ready = self._selector.select(0 if self._dropped else timeout)
        events: list[Event] = [(connection, Change.CLOSED) for connection in self._dropped]
        self._dropped.clear()
        for key, mask in ready:
            if key.fileobj is self._listener:
                self._accept(events)
            elif key.fileobj is self._wake_reader:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(4096)
            else:
                connection: Connection = key.data
                if mask & selectors.EVENT_WRITE and connection.open:
                    self._write(connection)
                if mask & selectors.EVENT_READ and connection.open:
                    self._read(connection, events)
        return events

    def wake(self) -> None:
        """Make a `poll` that waits return. May be called from any thread and from a signal handler."""
        with contextlib.suppress(BlockingIOError):  # full: a wake-up is on its way already
            self._wake_writer.send(b"\0")

    def send(self, connection: Connection, message: FromEngine) -> None:
        """Send now what the socket takes and keep the rest; a connection that keeps too much is dropped."""
        if connection.open:
            connection.unsent += encode(message)
            self._write(connection)
            if len(connection.unsent) > MAX_UNSENT_BYTES:
                self.drop(connection, f"it has not read {len(connection.unsent)} bytes")

    def broadcast(self, message: FromEngine) -> None:
        for connection in list(self._connections):
            self.send(connection, message)

    def drop(self, connection: Connection, reason: str | None = None) -> None:
        """Close `connection`; the next `poll` reports it. `reason` is logged as the peer's fault."""
        if not connection.open:
            return
        if reason is not None:
            log.error("Closing the connection of server %d: %s", connection.number, reason)
        connection.open = False
        connection.unsent.clear()
        self._selector.unregister(connection.socket)
        connection.socket.close()
        self._connections.remove(connection)
        self._dropped.append(connection)

    def close(self, flush_seconds: float = 1.0) -> None:
        """Stop accepting, give what is unsent up to `flush_seconds` to go out, close everything."""
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)
        deadline = time.monotonic() + flush_seconds
        while any(connection.unsent for connection in self._connections) and time.monotonic() < deadline:
            for key, mask in self._selector.select(deadline - time.monotonic()):
                if key.data is not None and mask & selectors.EVENT_WRITE:
                    self._write(key.data)
        for connection in list(self._connections):
            self.drop(connection)
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _accept(self, events: list[Event]) -> None:
        try:
            peer, _ = self._listener.accept()
        except OSError:  # gone again before it was accepted, or no file descriptor is left
            return
        peer.setblocking(False)
        self._count += 1
        connection = Connection(self._count, peer)
        self._connections.append(connection)
        self._selector.register(peer, selectors.EVENT_READ, connection)
        events.append((connection, Change.OPENED))

    def _read(self, connection: Connection, events: list[Event]) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(connection)
            return
        try:
            for body in connection.splitter.feed(data):
                events.append((connection, decode_to_engine(body)))
        except (FrameError, msgspec.MsgspecError) as error:
            self.drop(connection, f"it sent something that is not in the protocol ({error})")

    def _write(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent) if connection.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:  # the peer is gone
            self.drop(connection)
            return
        del connection.unsent[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        if self._selector.get_key(connection.socket).events != events:
            self._selector.modify(connection.socket, events, connection)


def _remove_stale_socket(path: Path) -> None:
    """Remove what an engine that was killed left behind, but not the socket of one that lives."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(f"another engine is listening at {path}")
