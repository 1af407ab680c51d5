"""Keys and their pepper in SSM Parameter Store and in Secrets Manager, against moto's server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError

from appliance.keys.editor import KeyEditor
from appliance.keys.errors import KeyRefused, KeysError
from appliance.keys.key_store import KeyStore

NOW = datetime.now(UTC)
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes clients, as the sources do: everything is in the environment."""
    for name, value in (
        ("AWS_ENDPOINT_URL", moto),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", REGION),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return boto3.client


@pytest.fixture
def editor(tmp_path: Path) -> KeyEditor:
    return KeyEditor(tmp_path / "keys.yaml", tmp_path / "keys.pepper")


def texts(editor: KeyEditor) -> tuple[str, str]:
    return editor._path.read_text(), editor._pepper_path.read_text()


def test_keys_from_parameter_store_are_refreshed(aws: Any, editor: KeyEditor) -> None:
    _, first = editor.add("alice", NOW)
    keys, pepper = texts(editor)
    ssm = aws("ssm")
    ssm.put_parameter(Name="/pagebox/keys", Value=keys, Type="SecureString")
    ssm.put_parameter(Name="/pagebox/pepper", Value=pepper, Type="SecureString")
    store = KeyStore("ssm:///pagebox/keys", "ssm:///pagebox/pepper", {})
    assert store.ring.check(first).name == "alice"
    assert store.seconds == 60 and not store.refresh()

    record, second = editor.add("bob", NOW)
    with pytest.raises(KeyRefused):
        store.ring.check(second)
    ssm.put_parameter(Name="/pagebox/keys", Value=texts(editor)[0], Type="SecureString", Overwrite=True)
    assert store.refresh().added == [record.id]
    assert store.ring.check(second).name == "bob"

    ssm.delete_parameter(Name="/pagebox/keys")
    with pytest.raises(KeysError, match="ssm:///pagebox/keys cannot be read: ParameterNotFound"):
        store.refresh()
    assert store.ring.check(second).name == "bob"


def test_keys_from_secrets_manager_with_the_pepper_in_a_file(aws: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW)
    secrets = aws("secretsmanager")
    secrets.create_secret(Name="pagebox/keys", SecretString=texts(editor)[0])
    store = KeyStore("secretsmanager:///pagebox/keys", str(editor._pepper_path), {})
    assert store.ring.check(key).name == "alice"
    record = editor.revoke("alice", NOW)
    secrets.put_secret_value(SecretId="pagebox/keys", SecretBinary=texts(editor)[0].encode())
    assert store.refresh().changed == [record.id]
    with pytest.raises(KeyRefused, match="was revoked"):
        store.ring.check(key)


def test_another_region_can_be_named(aws: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW)
    aws("ssm", region_name="us-west-2").put_parameter(Name="/far/keys", Value=texts(editor)[0], Type="String")
    pepper = str(editor._pepper_path)
    assert KeyStore("ssm:///far/keys?region=us-west-2", pepper, {}).ring.check(key).name == "alice"
    with pytest.raises(KeysError, match="ParameterNotFound"):
        KeyStore("ssm:///far/keys", pepper, {})


def test_what_is_missing_is_said(aws: Any, editor: KeyEditor, monkeypatch: pytest.MonkeyPatch) -> None:
    editor.add("alice", NOW)
    pepper = str(editor._pepper_path)
    with pytest.raises(KeysError, match="secretsmanager:///none cannot be read: ResourceNotFoundException"):
        KeyStore("secretsmanager:///none", pepper, {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(KeysError, match="Could not connect to the endpoint") as caught:
        KeyStore("ssm:///keys", pepper, {})
    assert isinstance(caught.value.__cause__, EndpointConnectionError)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(KeysError, match="You must specify a region"):
        KeyStore("ssm:///keys", pepper, {})


def test_a_server_with_a_file_of_keys_loads_no_boto3() -> None:
    program = "import sys, appliance.server.app, appliance.cli.keys; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
