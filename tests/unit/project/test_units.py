"""The units in systemd/, as systemd's own tools see them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.engine.liveness import TIMES_PER_WATCHDOG
from appliance.engine.process import LOADING_SECONDS
from appliance.engine.supervisor import cpu_tuning
from appliance.engine.watchdog import PREFILL_STALL_SECONDS

UNITS = Path(__file__).parents[3] / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
# `systemd-analyze security` gives 0 to what can do nothing and 10 to what can do everything.
WORST_EXPOSURE = {"pagebox-engine@.service": 2.0}
WORST_EXPOSURE_OF_OTHERS = 1.5

with_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units with commands that exist on this machine: `verify` looks for them."""
    for unit in (*UNITS.glob("*.*"), *UNITS.glob("*.service.d/*.conf")):
        if unit.is_file():
            target = tmp_path / unit.relative_to(UNITS)
            target.parent.mkdir(exist_ok=True)
            text = unit.read_text(encoding="utf-8")
            target.write_text(re.sub(r"(?<=[=+])/(opt/pagebox/bin/pagebox|usr/sbin/nginx)", "/bin/true", text))
    return tmp_path


def directives(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def seconds(value: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(ms|s|min|)", value).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "min": 60.0}.get(unit, 1.0)


def verify(units: list[Path]) -> str:
    command = ["systemd-analyze", "--man=no", "verify", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@with_systemd
def test_systemd_finds_nothing_to_say_about_any_unit(folder: Path) -> None:
    assert verify(sorted(unit for unit in folder.glob("*.*") if unit.is_file())) == ""


@with_systemd
def test_systemd_finds_nothing_to_say_about_nginx_with_our_drop_in(folder: Path) -> None:
    """`verify` exits with 0 whatever it finds, so its silence counts."""
    unit = folder / "nginx.service"
    unit.write_text("[Service]\nType=forking\nPIDFile=/run/nginx.pid\nExecStart=/bin/false\nTimeoutStopSec=5\n")
    assert verify([unit]) == ""


@with_systemd
def test_a_mistake_in_a_unit_is_noticed(folder: Path) -> None:
    unit = folder / "pagebox-server.service"
    unit.write_text(unit.read_text().replace("ProtectSystem=strict", "ProtectSystem=strictly"))
    assert "Failed to parse" in verify([unit])


@with_systemd
@pytest.mark.parametrize("service", SERVICES, ids=lambda unit: unit.name)
def test_a_service_that_is_taken_over_can_do_little(service: Path, folder: Path) -> None:
    worst = WORST_EXPOSURE.get(service.name, WORST_EXPOSURE_OF_OTHERS)
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={worst * 10:.0f}",
        str(folder / service.name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "unit", sorted(unit for unit in UNITS.rglob("*") if unit.is_file()), ids=lambda unit: unit.name
)
def test_every_directive_is_explained(unit: Path) -> None:
    """By a comment above it, or above the directives that it follows without a gap."""
    explained = False
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False
        else:
            assert explained or re.match("Description=|Documentation=", line) or "sysusers" in str(unit), line


def test_a_gpu_works_in_the_engines_sandbox() -> None:
    engine = directives(UNITS / "pagebox-engine@.service")
    assert engine["PrivateDevices"] == ["no"]
    assert engine["DeviceAllow"] == ["char-nvidia* rw"]
    assert engine["ProcSubset"] == ["all"]
    assert engine["MemoryDenyWriteExecute"] == ["no"]


def test_the_engine_has_no_network() -> None:
    engine = directives(UNITS / "pagebox-engine@.service")
    assert engine["PrivateNetwork"] == ["yes"]
    assert engine["RestrictAddressFamilies"] == ["AF_UNIX"]


def test_the_engine_is_tuned_as_one_that_a_server_starts() -> None:
    assignments = dict(
        assignment.split("=", 1)
        for line in directives(UNITS / "pagebox-engine@.service")["Environment"]
        for assignment in shlex.split(line)
    )
    assert {name: assignments.get(name) for name in cpu_tuning()} == cpu_tuning()


def test_the_watchdog_waits_longer_than_the_longest_step() -> None:
    watchdog = seconds(*directives(UNITS / "pagebox-engine@.service")["WatchdogSec"])
    assert watchdog * (1 - 1 / TIMES_PER_WATCHDOG) > PREFILL_STALL_SECONDS


def test_after_the_last_percent_of_the_weights_a_start_has_as_long_as_any() -> None:
    assert seconds(*directives(UNITS / "pagebox-engine@.service")["TimeoutStartSec"]) == LOADING_SECONDS


def test_nothing_is_killed_while_it_drains() -> None:
    drain = Settings().server.drain_timeout
    assert seconds(*directives(UNITS / "pagebox-server.service")["TimeoutStopSec"]) > drain
    assert seconds(*directives(UNITS / "nginx.service.d" / "pagebox.conf")["TimeoutStopSec"]) > drain
