"""Keys in their file: added, revoked, rotated, checked."""

from __future__ import annotations

import multiprocessing
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.keys.editor import KeyEditor
from appliance.keys.errors import KeyRefused, KeysError
from appliance.keys.key_store import KeyStore
from appliance.keys.secret import id_of, key_hash

NOW = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def editor(tmp_path: Path) -> KeyEditor:
    return KeyEditor(tmp_path / "keys.yaml", tmp_path / "keys.pepper")


def store(editor: KeyEditor) -> KeyStore:
    return KeyStore(str(editor._path), str(editor._pepper_path), {})


def refusal(keys: KeyStore, key: str, now: datetime) -> tuple[str, str]:
    with pytest.raises(KeyRefused) as caught:
        keys.ring.check(key, now.timestamp())
    return caught.value.code, caught.value.key_id


def test_a_new_key_is_valid_and_kept_nowhere(editor: KeyEditor, tmp_path: Path) -> None:
    record, key = editor.add("alice", NOW, rpm=60, models=["tiny"])
    assert key.startswith(f"sk-{record.id}-") and len(key.rpartition("-")[2]) == 43
    assert store(editor).ring.check(key) == record
    assert record.rpm == 60 and record.allows("tiny") and not record.allows("large")
    for file in tmp_path.iterdir():
        assert key.rpartition("-")[2] not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) in (0o600, 0o640)


def test_every_key_is_another(editor: KeyEditor) -> None:
    keys = [editor.add("same name", NOW)[1] for _ in range(3)]
    assert len({id_of(key) for key in keys}) == len({key.rpartition("-")[2] for key in keys}) == 3
    assert all(store(editor).ring.check(key).name == "same name" for key in keys)


def test_what_is_no_key_is_refused(editor: KeyEditor) -> None:
    record, key = editor.add("alice", NOW)
    _, other = editor.add("bob", NOW)
    keys = store(editor)
    moved = f"sk-{record.id}-{other.rpartition('-')[2]}"
    for wrong in ("", "sk-", record.id, key[:-1], key + "x", key.upper(), moved, "sk-abcdefgh-" + "x" * 43, "ü\udcff"):
        assert refusal(keys, wrong, NOW) == ("invalid_api_key", ""), wrong


def test_a_hash_under_another_pepper_verifies_nothing(editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW)
    assert key_hash(b"a", key) != key_hash(b"b", key)
    editor._pepper_path.write_text("0" * 64)
    assert refusal(store(editor), key, NOW) == ("invalid_api_key", "")


def test_an_expired_and_a_revoked_key_say_so_to_their_holder_alone(editor: KeyEditor) -> None:
    record, key = editor.add("alice", NOW, expires=NOW + timedelta(days=1))
    keys = store(editor)
    assert keys.ring.check(key, (NOW + timedelta(hours=23)).timestamp()) == record
    assert refusal(keys, key, NOW + timedelta(days=1)) == ("expired_api_key", record.id)
    assert refusal(keys, key + "x", NOW + timedelta(days=1)) == ("invalid_api_key", "")
    editor.revoke(record.id, NOW)
    assert keys.refresh().changed == [record.id]
    assert refusal(keys, key, NOW) == ("revoked_api_key", record.id)
    assert editor.revoke("alice", NOW + timedelta(days=9)).revoked == NOW


def test_after_a_rotation_the_old_secret_is_valid_for_the_grace_period(editor: KeyEditor) -> None:
    record, old = editor.add("alice", NOW, rpm=5)
    rotated, new = editor.rotate(old, NOW, timedelta(hours=1))
    assert rotated.id == record.id and rotated.rpm == 5 and old != new
    keys = store(editor)
    soon, later = NOW + timedelta(minutes=59), NOW + timedelta(hours=1)
    assert keys.ring.check(old, soon.timestamp()) == keys.ring.check(new, soon.timestamp()) == rotated
    assert refusal(keys, old, later) == ("replaced_api_key", record.id)
    assert keys.ring.check(new, later.timestamp()) == rotated
    editor.rotate(record.id, NOW, timedelta())
    keys.refresh()
    assert refusal(keys, new, NOW) == ("invalid_api_key", "")
    editor.revoke(record.id, NOW)
    with pytest.raises(KeysError, match="revoked and stays so"):
        editor.rotate(record.id, NOW, timedelta())


def test_a_key_is_named_by_its_id_or_by_a_name_that_only_it_has(editor: KeyEditor) -> None:
    first, _ = editor.add("twin", NOW)
    second, _ = editor.add("twin", NOW)
    with pytest.raises(KeysError, match=f"several keys named 'twin'.*{first.id}, {second.id}"):
        editor.revoke("twin", NOW)
    with pytest.raises(KeysError, match="no key with id or name 'nobody'"):
        editor.revoke("nobody", NOW)
    assert [record.revoked for record in editor.records()] == [None, None]


@pytest.mark.parametrize("fields", [{"rpm": 0}, {"tpm": -1}, {"models": [""]}, {"concurrency": True}])
def test_an_impossible_limit_changes_nothing(editor: KeyEditor, fields: dict[str, object]) -> None:
    editor.add("alice", NOW)
    before = editor._path.read_bytes()
    with pytest.raises(KeysError, match="not possible"):
        editor.add("bob", NOW, **fields)
    assert editor._path.read_bytes() == before


def test_a_lost_pepper_is_not_replaced_in_silence(editor: KeyEditor) -> None:
    record, _ = editor.add("alice", NOW)
    editor._pepper_path.unlink()
    with pytest.raises(KeysError, match=r"need the one they had"):
        editor.add("bob", NOW)
    with pytest.raises(KeysError, match="cannot be read"):
        editor.rotate(record.id, NOW, timedelta())
    assert not editor._pepper_path.exists() and [each.name for each in editor.records()] == ["alice"]


def test_owner_and_mode_stay_and_nothing_else_is_left_in_the_folder(editor: KeyEditor, tmp_path: Path) -> None:
    editor.add("alice", NOW)
    editor._path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(editor._path, 12, 34)
    editor.add("bob", NOW)
    found = editor._path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert os.geteuid() != 0 or (found.st_uid, found.st_gid) == (12, 34)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["keys.pepper", "keys.yaml"]


def _add_five(path: Path, pepper: Path, name: str) -> None:
    for number in range(5):
        KeyEditor(path, pepper).add(f"{name}{number}", NOW)


def test_writers_at_the_same_time_lose_no_key(editor: KeyEditor) -> None:
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_add_five, args=(editor._path, editor._pepper_path, name)) for name in ("a", "b", "c")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(record.name for record in editor.records()) == sorted(
        f"{name}{i}" for name in "abc" for i in range(5)
    )
