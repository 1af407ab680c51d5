"""The text of the file of keys, what is wrong in it, and how it is read again."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.keys.document import parse, serialize
from appliance.keys.errors import KeyRefused, KeysError
from appliance.keys.key_store import KeyStore
from appliance.keys.record import KeyRecord, PreviousSecret
from appliance.keys.secret import key_hash

PEPPER = "p" * 64
KEY = "sk-1234567890-secret"
HASH = key_hash(PEPPER.encode(), KEY).hex()
ONE = f"""
version: 1
keys:
- id: 1234567890
  name: alice
  hash: {HASH}
  created: 2026-01-01T00:00:00Z
  rpm: 60
  expires: 2030-01-31
"""


def written(folder: Path, text: str, mode: int = 0o600) -> KeyStore:
    for name, contents in (("keys.yaml", text), ("keys.pepper", PEPPER + "\n")):
        (folder / name).write_text(contents)
        (folder / name).chmod(mode)
    return KeyStore(str(folder / "keys.yaml"), None, {})


def mistake(text: str) -> str:
    with pytest.raises(KeysError) as caught:
        parse(text.encode(), "k.yaml")
    return str(caught.value)


def test_values_are_read_as_they_stand() -> None:
    [record] = parse(ONE.replace("1234567890", "10e10").replace(HASH, "1" * 64).encode(), "k.yaml")
    assert (record.id, record.hash, record.rpm) == ("10e10", "1" * 64, 60)
    assert record.expires == datetime(2030, 1, 31, tzinfo=UTC)


def test_what_is_written_is_read_back() -> None:
    time = datetime(2030, 1, 31, 12, 30, tzinfo=UTC)
    full = KeyRecord(
        id="0123",
        name="Zoë: #1 'x'",
        hash="2" * 64,
        created=time,
        rpm=1,
        tpm=2,
        concurrency=3,
        priority=-4,
        models=("a", "1e5"),
        cache_group="null",
        expires=time,
        revoked=time,
        previous=PreviousSecret("3" * 64, time),
    )
    bare = KeyRecord(id="abcd", name="true", hash="4" * 64, created=time)
    assert parse(serialize([full, bare]), "k.yaml") == (full, bare)
    assert parse(serialize([]), "k.yaml") == parse(b"", "k.yaml") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("keys: [", "k.yaml:2 is not valid YAML"),
        ("- a", "must hold `version: 1` and a list `keys`"),
        ("version: 1", "must hold `version: 1` and a list `keys`"),
        ("version: 2\nkeys: []", "has version 2; this pagebox reads version 1"),
        (ONE + "  rmp: 5\n", "k.yaml, key 1234567890: Object contains unknown field `rmp`"),
        (ONE.replace("rpm: 60", "rpm: sixty"), "key 1234567890: Expected `int"),
        (ONE.replace("rpm: 60", "rpm: 0"), "key 1234567890: Expected `int` >= 1"),
        (ONE.replace("  id: 1234567890\n", "").replace("- id: 1234567890\n ", "-"), "key number 1"),
        (ONE.replace(HASH, "abc"), "key 1234567890: Expected `str` matching regex"),
        (ONE.replace("2030-01-31", "2030-01-31T10:00:00"), "expires needs a time zone, as in 2030-01-31T12:00:00Z"),
        (ONE + ONE.partition("keys:\n")[2], "has the id 1234567890 twice"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, expected: str) -> None:
    assert expected in mistake(text)


def test_too_many_keys_are_refused() -> None:
    assert "4096 are the most" in mistake("version: 1\nkeys:\n" + "- {}\n" * 4097)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_file_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeysError, match=f"has mode {mode:04o}.*chmod 640"):
        written(tmp_path, ONE, mode)


def test_a_missing_file_and_a_short_pepper_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"keys.yaml does not exist; `pagebox keys init`"):
        KeyStore(str(tmp_path / "keys.yaml"), None, {})
    written(tmp_path, ONE)
    (tmp_path / "keys.pepper").write_text("short")
    with pytest.raises(KeysError, match="has 5 bytes"):
        KeyStore(str(tmp_path / "keys.yaml"), None, {})


def test_the_pepper_is_the_setting_then_the_credential_then_the_file_beside(tmp_path: Path) -> None:
    written(tmp_path, ONE)
    place = str(tmp_path / "keys.yaml")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert KeyStore(place, None, environ).ring.check(KEY, 0).name == "alice"
    for file in (credentials / "api-keys-pepper", tmp_path / "other"):
        file.write_text("o" * 64)
        file.chmod(0o400)
    with pytest.raises(KeyRefused):
        KeyStore(place, None, environ).ring.check(KEY, 0)
    assert KeyStore(place, str(tmp_path / "keys.pepper"), environ).ring.check(KEY, 0).name == "alice"
    with pytest.raises(KeysError, match="set api-keys-pepper"):
        KeyStore("ssm:///keys", None, {})


def test_another_reading_says_what_changed_and_a_mistake_keeps_what_was(tmp_path: Path) -> None:
    store = written(tmp_path, ONE)
    file = tmp_path / "keys.yaml"
    assert not store.refresh() and not store.refresh(force=True)
    second = ONE.partition("keys:\n")[2].replace("1234567890", "second")
    file.write_text(ONE.replace("rpm: 60", "rpm: 61") + second)
    change = store.refresh()
    assert (change.added, change.removed, change.changed) == (["second"], [], ["1234567890"])
    assert store.ring.check(KEY, 0).rpm == 61
    file.write_text("nonsense: [")
    for _ in range(2):
        with pytest.raises(KeysError, match="not valid YAML"):
            store.refresh()
    assert store.ring.check(KEY, 0).rpm == 61
    file.unlink()
    with pytest.raises(KeysError, match="does not exist"):
        store.refresh()
    file.write_text("version: 1\nkeys: []\n")
    file.chmod(0o600)
    assert store.refresh().removed == ["1234567890", "second"]
    with pytest.raises(KeyRefused):
        store.ring.check(KEY, 0)


@pytest.mark.parametrize("place", ["s3:///keys", "ssm://", "ssm:///", "ssm:///a?zone=b", "secretsmanager:///"])
def test_a_place_that_cannot_be_is_refused(place: str) -> None:
    with pytest.raises(KeysError, match="cannot be"):
        KeyStore(place, "pepper", {})
