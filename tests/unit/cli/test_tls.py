"""`pagebox tls`, and the names that EC2 has for a machine."""

from __future__ import annotations

import asyncio
import datetime
import json
from pathlib import Path

import pytest

from appliance.cli.ec2_names import ec2_names
from appliance.cli.main import main
from appliance.tls.names import parsed_names
from tests.support.imds_double import ImdsDouble
from tests.unit.tls.test_machine_certificate import somebodys

NAMES = {
    "meta-data/local-hostname": "ip-10-0-0-7.eu-central-1.compute.internal",
    "meta-data/public-hostname": "ec2-54-1-2-3.eu-central-1.compute.amazonaws.com",
    "meta-data/local-ipv4": "10.0.0.7",
    "meta-data/public-ipv4": "54.1.2.3",
    "meta-data/ipv6": "2600:1f00::7\n-no-address-",
}


@pytest.fixture
def on_ec2(tmp_path: Path) -> Path:
    dmi = tmp_path / "dmi"
    dmi.mkdir()
    (dmi / "sys_vendor").write_text("Amazon EC2\n")
    return dmi


async def asked_of(double: ImdsDouble, dmi: Path, *further: str) -> object:
    async with double.serving():
        return await asyncio.to_thread(ec2_names, dmi, [*further, double.url])


async def test_the_certificate_gets_ec2s_names_and_the_public_address(on_ec2: Path) -> None:
    double = ImdsDouble(values=dict(NAMES))
    assert await asked_of(double, on_ec2) == parsed_names(" ".join(NAMES.values()).replace("-no-address-", "").split())
    assert double.without_token == []


async def test_a_machine_without_public_names_has_the_others(on_ec2: Path) -> None:
    double = ImdsDouble(values={"meta-data/local-ipv4": "10.0.0.7"})
    assert await asked_of(double, on_ec2) == parsed_names(["10.0.0.7"])


async def test_without_an_answer_there_is_a_certificate_all_the_same(
    on_ec2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asked_of(ImdsDouble(token_status=403), on_ec2, "http://127.0.0.1:9") == parsed_names([])
    assert "goes without EC2's names" in capsys.readouterr().err


def test_elsewhere_nobody_is_asked(tmp_path: Path) -> None:
    assert ec2_names(tmp_path, ["http://127.0.0.1:9"]) == parsed_names([])


# ---- the commands ----------------------------------------------------------------------------------------------------


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["tls", "show", "--json", "--folder", str(folder)]) == 0
    facts: dict[str, object] = json.loads(capsys.readouterr().out)
    return facts


def test_ensure_show_and_renew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tls"
    assert main(["tls", "show", "--folder", str(folder)]) == 1
    assert "`pagebox tls ensure` makes one" in capsys.readouterr().err
    assert main(["tls", "ensure", "--name", "gpu.example.org", "10.9.8.7", "--folder", str(folder)]) == 0
    facts = shown(folder, capsys)
    assert facts["kind"] == "self-signed by this software"
    names = facts["names"]
    assert isinstance(names, list) and {"gpu.example.org", "10.9.8.7", "localhost"} <= set(names)
    assert main(["tls", "ensure", "--folder", str(folder)]) == 0
    assert shown(folder, capsys)["sha256"] == facts["sha256"]
    assert main(["tls", "renew", "--folder", str(folder)]) == 0
    assert shown(folder, capsys)["sha256"] != facts["sha256"]
    assert main(["tls", "ensure", "--name", "not a name", "--folder", str(folder)]) == 1


def test_install_takes_certbots_word_for_where_the_certificate_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tls"
    assert main(["tls", "install", "--folder", str(folder)]) == 2
    assert "RENEWED_LINEAGE" in capsys.readouterr().err
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=90)
    somebodys(tmp_path / "lineage", until)
    monkeypatch.setenv("RENEWED_LINEAGE", str(tmp_path / "lineage"))
    assert main(["tls", "install", "--folder", str(folder)]) == 0
    facts = shown(folder, capsys)
    assert (facts["kind"], facts["subject"]) == ("installed by somebody", "CN=llm.example.org")
    assert main(["tls", "renew", "--folder", str(folder)]) == 0
    assert shown(folder, capsys) == facts
