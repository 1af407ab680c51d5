from __future__ import annotations

import socket
from pathlib import Path

import pytest

from appliance.engine import hub as hub_module
from appliance.engine.hub import Change, Connection, Hub
from appliance.protocol.wire import PhaseChange, Ping, encode


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub.sock")


def connect(hub: Hub, tmp_path: Path) -> tuple[socket.socket, Connection]:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(tmp_path / "hub.sock"))
    ((connection, change),) = hub.poll(None)
    assert change is Change.OPENED
    return peer, connection


def test_what_a_peer_does_not_read_is_kept_up_to_a_bound_and_then_the_peer_is_dropped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "MAX_UNSENT_BYTES", 1_000_000)
    peer, connection = connect(hub, tmp_path)
    other, other_connection = connect(hub, tmp_path)
    message = PhaseChange("starting", "x" * 100_000)
    sent = 0
    while connection.open and sent < 100:
        hub.send(connection, message)
        sent += 1
    assert 10 < sent < 100
    assert "has not read" in caplog.text
    assert hub.poll(None) == [(connection, Change.CLOSED)]
    hub.send(other_connection, PhaseChange("ready"))
    assert other.recv(1000) == encode(PhaseChange("ready"))
    peer.close()
    hub.close()


def test_a_peer_that_reads_late_gets_everything_in_order(hub: Hub, tmp_path: Path) -> None:
    peer, connection = connect(hub, tmp_path)
    messages = [PhaseChange("starting", str(number) * 50_000) for number in range(10)]
    for message in messages:
        hub.send(connection, message)
    expected = b"".join(encode(message) for message in messages)
    received = b""
    while len(received) < len(expected):
        received += peer.recv(100_000)
        if connection.unsent:
            hub.poll(0)
    assert received == expected
    hub.close()


def test_messages_before_a_hang_up_come_before_its_report(hub: Hub, tmp_path: Path) -> None:
    peer, connection = connect(hub, tmp_path)
    peer.send(encode(Ping()) * 2)
    peer.close()
    events = hub.poll(None)
    while events[-1][1] is not Change.CLOSED:
        events += hub.poll(None)
    assert events == [(connection, Ping()), (connection, Ping()), (connection, Change.CLOSED)]
    hub.close()


def test_wake_ends_a_wait(hub: Hub) -> None:
    hub.wake()
    assert hub.poll(None) == []
    hub.close()


def test_the_socket_is_for_its_user_alone_and_goes_with_the_hub(hub: Hub, tmp_path: Path) -> None:
    assert (tmp_path / "hub.sock").stat().st_mode & 0o777 == 0o600
    hub.close()
    assert not (tmp_path / "hub.sock").exists()


def test_the_socket_of_a_killed_engine_is_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "hub.sock"))
    Hub(tmp_path / "hub.sock").close()
