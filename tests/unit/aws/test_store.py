"""Events are told apart by identity, and what was done about them survives."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.aws.events import Event, Kind
from appliance.aws.store import POLLS_UNTIL_ENDED, EventStore

NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
SOURCE = "source"


def event(identity: str = "a", minute: int = 2, *, outlives_boot: bool = False) -> Event:
    return Event(
        identity=identity,
        kind=Kind.SPOT_INTERRUPTION,
        summary="EC2 will terminate this spot instance",
        deadline=NOW.replace(minute=minute),
        outlives_boot=outlives_boot,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.json"


def store(file: Path, boot: str = "boot-1") -> EventStore:
    return EventStore(file, boot, lambda: NOW)


def test_an_event_is_new_once(file: Path) -> None:
    events = store(file)
    assert [record.event for record in events.update(SOURCE, [event()]).new] == [event()]
    assert not events.update(SOURCE, [event()])


def test_an_event_is_not_new_after_a_restart(file: Path) -> None:
    store(file).update(SOURCE, [event()])
    assert not store(file).update(SOURCE, [event()])


def test_what_was_done_survives_a_restart_with_what_undoing_it_needs(file: Path) -> None:
    events = store(file)
    [record] = events.update(SOURCE, [event()]).new
    events.mark_done(record, "deregister", '["arn"]')
    [record] = store(file).records
    assert record.done == {"deregister": '["arn"]'}


def test_an_event_with_another_deadline_has_moved(file: Path) -> None:
    events = store(file)
    events.update(SOURCE, [event(minute=2)])
    changes = events.update(SOURCE, [event(minute=3)])
    assert (len(changes.new), len(changes.moved)) == (0, 1)
    assert store(file).records[0].event == event(minute=3)


def test_an_event_is_over_when_it_is_missing_several_times_in_a_row(file: Path) -> None:
    events = store(file)
    events.update(SOURCE, [event()])
    for _ in range(POLLS_UNTIL_ENDED - 1):
        assert not events.update(SOURCE, [])
    events.update(SOURCE, [event()])  # it was there all the time
    for _ in range(POLLS_UNTIL_ENDED - 1):
        assert not events.update(SOURCE, [])
    assert [record.event for record in events.update(SOURCE, []).ended] == [event()]
    assert store(file).records == ()
    assert events.update(SOURCE, [event()]).new, "the next one is another one"


def test_a_source_ends_no_events_of_another(file: Path) -> None:
    events = store(file)
    events.update(SOURCE, [event()])
    for _ in range(POLLS_UNTIL_ENDED):
        assert not events.update("another", [])


def test_a_source_that_only_finds_ends_nothing(file: Path) -> None:
    events = store(file)
    events.update(SOURCE, [event()], can_end=False)
    for _ in range(POLLS_UNTIL_ENDED):
        assert not events.update(SOURCE, [], can_end=False)


def test_another_boot_forgets_what_was_for_this_one(file: Path) -> None:
    events = store(file)
    events.update(SOURCE, [event("a"), event("b", outlives_boot=True)])
    assert [record.event.identity for record in store(file, "boot-2").records] == ["b"]


def test_a_reboot_that_was_acted_on_is_past_once_it_has_happened(file: Path) -> None:
    events = store(file)
    acted, untouched = events.update(SOURCE, [event("a", outlives_boot=True), event("b", outlives_boot=True)]).new
    events.mark_acting(acted)
    assert not events.is_past(acted)
    after = store(file, "boot-2")
    assert {record.event.identity: after.is_past(record) for record in after.records} == {"a": True, "b": False}
    assert not after.is_past(untouched)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"format": 1, "records": [{"event": {}}]}'])
def test_a_damaged_file_is_put_aside(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    events = store(file)
    assert events.records == ()
    assert (file.parent / "events.json.damaged").read_bytes() == content
    events.update(SOURCE, [event()])
    assert len(store(file).records) == 1


def test_a_file_of_another_format_is_not_read(file: Path) -> None:
    file.parent.mkdir()
    file.write_text('{"format": 2, "records": []}')
    assert store(file).records == ()


def test_a_state_that_cannot_be_written_stops_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.parent.write_text("a file where the folder should be")
    events = EventStore(file.parent / "x" / "events.json", "boot-1", lambda: NOW)
    assert len(events.update(SOURCE, [event()]).new) == 1
    assert "could not be written" in caplog.text
