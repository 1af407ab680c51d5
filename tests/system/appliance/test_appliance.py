"""The package on a machine of its own: installed, booted with systemd as process 1, used, broken, updated, rebooted.

The model is the real demo model. The tests are steps of one story, in this order; each looks from outside, by HTTPS and
systemctl. SYSTEM_TEST_PACKAGE names a package to test instead of one that is built here.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.imds_double import IDENTITY, SPOT
from tests.system.appliance.nspawn import Answer, Booted, booted, make_root, metadata_network, why_not

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(why_not() is not None, reason=f"booting a machine {why_not()}"),
    pytest.mark.timeout(600),
]

SOURCE = Path(__file__).parents[3]
MODEL = "/var/lib/pagebox/models/model"
ENGINE = "pagebox-engine@0.service"
SERVER = "pagebox-server.service"
QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Where does the sun rise?"}], "temperature": 0}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SYSTEM_TEST_PACKAGE" in os.environ:
        return Path(os.environ["SYSTEM_TEST_PACKAGE"])
    subprocess.run(["make", "deb"], cwd=SOURCE, check=True, timeout=900)
    [built] = (SOURCE / "dist").glob("*.deb")
    return built


@pytest.fixture(scope="module")
def root(package: Path) -> Iterator[Path]:
    folder = Path("/dev/shm") / f"pagebox-system-test-{os.getpid()}"
    make_root(folder, package)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("console") / "log"


@pytest.fixture(scope="module")
def machine(root: Path, log: Path, demo_model: Path) -> Iterator[Booted]:
    with booted(root, log, {demo_model: MODEL}) as machine:
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Booted) -> Booted:
    machine.run("dpkg", "-i", "/pagebox.deb", timeout=300)
    # Under a crowded processor a step of this model still takes far less; 90 s would only make the test longer.
    machine.run("mkdir", "-p", f"/etc/systemd/system/{ENGINE}.d")
    machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=15\\n' > /etc/systemd/system/{ENGINE}.d/test.conf")
    machine.systemctl("daemon-reload")
    return machine


@pytest.fixture(scope="module")
def key(installed: Booted) -> str:
    told = json.loads(installed.run("pagebox", "keys", "add", "system-test", "--json"))
    return str(told["key"])


def ready(machine: Booted) -> bool:
    return machine.https("/readyz", seconds=5).status == 200


def ask(machine: Booted, key: str, max_tokens: int = 8) -> Answer:
    """Exactly `max_tokens` of them."""
    return machine.https("/v1/chat/completions", key, QUESTION | {"max_tokens": max_tokens, "ignore_eos": True})


class Asking:
    """Requests that run in threads while something happens."""

    def __init__(self, machine: Booted, key: str, *, threads: int, max_tokens: int, repeat: bool) -> None:
        self.answers: list[Answer] = []
        self._going = repeat
        self._machine, self._key, self._max_tokens = machine, key, max_tokens
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        self.answers.append(ask(self._machine, self._key, self._max_tokens))
        while self._going:
            self.answers.append(ask(self._machine, self._key, self._max_tokens))


def test_the_package_starts_nothing_by_itself_and_says_what_is_next(installed: Booted) -> None:
    assert installed.systemctl("is-active", "pagebox.target", check=False) == "inactive"
    assert installed.run("stat", "-c", "%a %U:%G", "/etc/pagebox/keys.yaml", "/etc/pagebox/keys.pepper").split(
        "\n"
    ) == [
        "640 root:pagebox",
        "640 root:pagebox",
    ]


def test_the_target_starts_everything(installed: Booted) -> None:
    installed.systemctl("enable", "--now", "pagebox.target")
    installed.eventually(lambda: ready(installed), 120)
    units = (
        "pagebox-server.socket",
        SERVER,
        ENGINE,
        "pagebox-spot-watcher.service",
        "pagebox-tls.timer",
        "nginx.service",
    )
    assert {unit: installed.systemctl("is-active", unit, check=False) for unit in units} == dict.fromkeys(
        units, "active"
    )
    for unit in (ENGINE, SERVER):
        installed.eventually(lambda unit=unit: installed.show(unit, "StatusText").startswith("Ready"), 10)


def test_each_process_is_somebody_else_and_the_engine_has_no_network(installed: Booted) -> None:
    for unit, user in (
        (SERVER, "pagebox"),
        (ENGINE, "pagebox-engine"),
        ("pagebox-spot-watcher.service", "pagebox-watcher"),
    ):
        process = installed.main_process(unit)
        assert installed.run("id", "-un", str(process.uids().real)) == user
    engine = installed.main_process(ENGINE)
    told = subprocess.run(["nsenter", "-t", str(engine.pid), "-n", "ip", "-br", "link"], capture_output=True, text=True)
    assert [line.split()[0] for line in told.stdout.splitlines()] == ["lo"]


def test_a_key_opens_the_https_front_and_nothing_else_does(installed: Booted, key: str) -> None:
    installed.eventually(lambda: ask(installed, key).status == 200, 30)
    assert "east" in ask(installed, key, 40).json["choices"][0]["message"]["content"].lower()
    assert ask(installed, "sk-made-up").status == 401
    assert installed.https("/metrics", key).status in (403, 404)


def test_the_doctor_finds_nothing_wrong(installed: Booted, key: str) -> None:
    findings = json.loads(installed.run("pagebox", "doctor", "--json", check=False))
    assert [finding for finding in findings if finding["status"] == "problem"] == []


def test_a_restart_of_the_server_under_load_loses_no_request(installed: Booted, key: str) -> None:
    with Asking(installed, key, threads=4, max_tokens=8, repeat=True) as asking:
        time.sleep(2)
        installed.systemctl("restart", SERVER)
        time.sleep(4)
    assert len(asking.answers) > 8
    assert [answer for answer in asking.answers if answer.status != 200] == []


def test_a_killed_engine_is_told_to_clients_and_comes_back_by_itself(installed: Booted, key: str) -> None:
    server, restarts = installed.main_process(SERVER).pid, int(installed.show(ENGINE, "NRestarts"))
    with Asking(installed, key, threads=2, max_tokens=2000, repeat=False) as asking:
        time.sleep(3)
        installed.main_process(ENGINE).kill()
    for answer in asking.answers:
        assert answer.status == 503
        assert "engine" in answer.json["error"]["message"]
    installed.eventually(lambda: ready(installed), 120)
    assert ask(installed, key).status == 200
    assert int(installed.show(ENGINE, "NRestarts")) == restarts + 1
    assert installed.main_process(SERVER).pid == server


def test_a_hung_engine_is_found_by_the_watchdog(installed: Booted, key: str) -> None:
    installed.eventually(lambda: ready(installed), 120)
    engine = installed.main_process(ENGINE)
    engine.send_signal(signal.SIGSTOP)
    installed.eventually(lambda: not engine.is_running(), 60)
    assert (
        "watchdog"
        in installed.journal("init.scope", 200).lower()
        + installed.run("journalctl", "--no-pager", "-o", "cat", "-u", ENGINE, "-n", "100").lower()
    )
    installed.eventually(lambda: ready(installed), 120)
    assert ask(installed, key).status == 200


def test_a_reload_takes_a_new_key_without_a_restart(installed: Booted) -> None:
    server = installed.main_process(SERVER).pid
    another = json.loads(installed.run("pagebox", "keys", "add", "another", "--json"))["key"]
    installed.systemctl("reload", SERVER)
    installed.eventually(lambda: ask(installed, another).status == 200, 20)
    assert installed.main_process(SERVER).pid == server


def test_an_upgrade_keeps_the_configuration_and_the_keys(installed: Booted, key: str) -> None:
    installed.run("sh", "-c", "echo '# of the administrator' >> /etc/pagebox/pagebox.yaml")
    installed.run("dpkg", "-i", "--force-confdef", "/pagebox.deb", timeout=300)
    assert "# of the administrator" in installed.run("cat", "/etc/pagebox/pagebox.yaml")
    installed.eventually(lambda: ready(installed), 120)
    assert ask(installed, key).status == 200


@contextmanager
def metadata_service(machine: Booted, values: dict[str, str]) -> Iterator[None]:
    with metadata_network(machine) as network:
        command = [*network, sys.executable, "-c", IMDS, json.dumps(values)]
        service = subprocess.Popen(command, cwd=SOURCE, stdout=subprocess.PIPE)
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == b"listening\n"
            yield
        finally:
            service.kill()
            service.wait()


def test_a_spot_notice_drains_and_ends_clean(installed: Booted, key: str) -> None:
    installed.eventually(lambda: ready(installed), 120)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=45)
    notice = json.dumps({"action": "terminate", "time": f"{end:%Y-%m-%dT%H:%M:%SZ}"})
    with metadata_service(installed, IDENTITY | {SPOT: notice}):
        with Asking(installed, key, threads=2, max_tokens=100, repeat=False) as asking:
            installed.systemctl("restart", "pagebox-spot-watcher")
            installed.eventually(lambda: installed.https("/readyz").status == 503, 60)
        assert {answer.status for answer in asking.answers} == {200}
        installed.eventually(lambda: '"drained"' in installed.run("pagebox", "drain", "--status", "--json"), 60)
        refused = ask(installed, key)
        assert refused.status == 503
        assert refused.json["error"]["code"] == "instance_draining"


def test_a_notice_that_is_withdrawn_has_it_serve_again(installed: Booted, key: str) -> None:
    with metadata_service(installed, IDENTITY):
        installed.eventually(lambda: ready(installed), 90)
        assert ask(installed, key).status == 200


IMDS = """
import asyncio, json, sys
from tests.support.imds_double import ImdsDouble

async def main():
    async with ImdsDouble(values=json.loads(sys.argv[1])).serving("169.254.169.254", 80):
        print("listening", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_nothing_failed_on_the_way(installed: Booted) -> None:
    assert installed.systemctl("--failed", "--no-legend", "--plain") == ""


# The last one: it ends `machine`.
def test_after_a_reboot_it_serves_by_itself(
    installed: Booted, key: str, root: Path, log: Path, demo_model: Path, request: pytest.FixtureRequest
) -> None:
    installed.systemctl("poweroff", "--no-block", check=False)
    deadline = time.monotonic() + 90
    while Path(f"/proc/{installed.pid}").exists():
        assert time.monotonic() < deadline, "it does not power off"
        time.sleep(0.2)
    with booted(root, log, {demo_model: MODEL}) as again:
        again.eventually(lambda: ready(again), 180)
        assert ask(again, key).status == 200
