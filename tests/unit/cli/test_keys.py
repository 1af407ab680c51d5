"""`pagebox keys`."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from appliance.keys.key_store import KeyStore


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("PAGEBOX_API_KEYS_FILE", "PAGEBOX_API_KEYS_PEPPER", "PAGEBOX_AUDIT_LOG"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "keys.yaml"


def keys(file: Path, *words: str) -> int:
    return main(["keys", words[0], "--file", str(file), *words[1:]])


def as_json(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert keys(file, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_add_prints_the_key_alone_for_scripts_and_the_rest_for_people(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(file, "add", "alice", "--rpm", "60", "--models", "tiny", "large") == 0
    out, err = capsys.readouterr()
    [record] = KeyStore(str(file), None, {}).ring.records
    assert out.startswith(f"sk-{record.id}-") and out.count("\n") == 1
    assert err == f"The key {record.id} of alice. It is shown this once:\n"
    assert KeyStore(str(file), None, {}).ring.check(out.strip()) == record
    assert (record.rpm, record.models) == (60, ("tiny", "large"))


def test_list_shows_limits_and_states_but_neither_keys_nor_hashes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert keys(file, "list") == 0
    assert capsys.readouterr().out.split() == [
        "ID",
        "NAME",
        "STATE",
        "RPM",
        "TPM",
        "AT",
        "A",
        "TIME",
        "PRIORITY",
        "EXPIRES",
        "MODELS",
    ]
    first = as_json(file, capsys, "add", "alice", "--tpm", "1000", "--concurrency", "2", "--priority", "-1")
    second = as_json(file, capsys, "add", "bob", "--expires", "2020-01-31")
    third = as_json(file, capsys, "add", "carol", "--expires", "90d", "--cache-group", "team")
    expires = datetime.fromisoformat(third["expires"])
    assert timedelta(days=89) < expires - datetime.now(UTC) <= timedelta(days=90)
    as_json(file, capsys, "rotate", third["id"], "--grace", "2h")
    listed = as_json(file, capsys, "list")
    assert [each["state"] for each in listed] == ["active", "expired", "rotating"]
    assert listed[0] | {"key": first["key"]} == first
    assert (listed[0]["tpm"], listed[0]["concurrency"], listed[0]["priority"]) == (1000, 2, -1)
    assert keys(file, "list") == 0
    text = capsys.readouterr().out + json.dumps(listed)
    assert "2020-01-31T00:00:00Z" in text
    for each in (first, second, third):
        assert each["key"].rpartition("-")[2] not in text
    for record in KeyStore(str(file), None, {}).ring.records:
        assert record.hash not in text


def test_init_makes_what_is_missing_and_changes_nothing_else(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(file, capsys, "init") == {"created": True}
    assert KeyStore(str(file), None, {}).ring.records == []
    key = as_json(file, capsys, "add", "alice")["key"]
    before = file.read_bytes()
    assert as_json(file, capsys, "init") == {"created": False}
    assert file.read_bytes() == before
    assert KeyStore(str(file), None, {}).ring.check(key).name == "alice"
    assert keys(file, "init") == 0 and "was there already" in capsys.readouterr().out


def test_rotate_and_revoke(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = as_json(file, capsys, "add", "alice")
    assert keys(file, "rotate", "alice") == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"sk-{old['id']}-") and out.strip() != old["key"] and "The old one is valid until" in err
    assert keys(file, "rotate", "alice", "--grace", "0s") == 0
    assert "The old one is no longer valid" in capsys.readouterr().err
    assert keys(file, "revoke", old["id"]) == 0
    assert capsys.readouterr().out == f"The key {old['id']} of alice is revoked.\n"
    assert as_json(file, capsys, "list")[0]["state"] == "revoked"


def test_mistakes_are_one_sentence_and_an_exit_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(code: int, *words: str) -> str:
        try:
            assert keys(file, *words) == code
        except SystemExit as exit:
            assert exit.code == code
        return capsys.readouterr().err

    assert "has no key with id or name 'nobody'" in said(1, "revoke", "nobody")
    assert "'soon' is neither a time from now" in said(2, "add", "a", "--expires", "soon")
    assert "'1y' is no time" in said(2, "rotate", "a", "--grace", "1y")
    assert "`int` >= 1" in said(1, "add", "a", "--rpm", "0")
    assert "did you mean --models" in said(2, "add", "a", "--model", "x")
    assert main(["keys", "list", "--file", "ssm:///keys"]) == 2
    assert "cannot be changed from here" in capsys.readouterr().err
    assert main(["keys", "add", "a", "--file", str(file / "no" / "keys.yaml")]) == 1
    assert not file.exists()


def test_the_environment_names_the_files_and_changes_are_noted_without_keys(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "audit.jsonl"
    monkeypatch.setenv("PAGEBOX_API_KEYS_FILE", str(file))
    monkeypatch.setenv("PAGEBOX_API_KEYS_PEPPER", str(tmp_path / "salt"))
    monkeypatch.setenv("PAGEBOX_AUDIT_LOG", str(log))
    monkeypatch.setenv("SUDO_USER", "dora")
    assert main(["keys", "add", "alice"]) == main(["keys", "rotate", "alice"]) == main(["keys", "revoke", "alice"]) == 0
    shown = capsys.readouterr().out.split()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["key_added", "key_rotated", "key_revoked"]
    assert {line["by"] for line in lines} == {"dora"} and {line["name"] for line in lines} == {"alice"}
    assert (tmp_path / "salt").exists() and not (tmp_path / "keys.pepper").exists()
    for key in shown[:2]:
        assert key.rpartition("-")[2] not in log.read_text()
