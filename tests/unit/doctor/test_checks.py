"""`pagebox doctor` on machines that are made of files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.aws.nvml import GpuHealth, NvmlError
from appliance.cli import doctor
from appliance.config import resolve_values
from appliance.doctor import engine, gpu, host, setup
from appliance.doctor.finding import Finding
from appliance.doctor.machine import Done, Machine


class Made(Machine):
    """A machine below a folder, with programs that answer what they were told to."""

    def __init__(self, root: Path, programs: dict[str, Done] | None = None) -> None:
        super().__init__(root)
        self.programs = programs or {}

    def write(self, path: str, text: str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_text(text)

    def run(self, command: Sequence[str]) -> Done | None:
        return next((done for name, done in self.programs.items() if name in " ".join(command)), None)


@pytest.fixture
def machine(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def with_gpu(machine: Made) -> Made:
    machine.write("/sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
    machine.write("/sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
    machine.write("/sys/bus/pci/devices/0000:01:00.1/vendor", "0x10de\n")  # its sound
    machine.write("/sys/bus/pci/devices/0000:01:00.1/class", "0x040300\n")
    machine.write("/sys/bus/pci/devices/0000:02:00.0/vendor", "0x1b36\n")
    machine.write("/sys/bus/pci/devices/0000:02:00.0/class", "0x030000\n")
    machine.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module  570.86.15  Release\n")
    for node in ("nvidiactl", "nvidia-uvm", "nvidia0"):
        machine.write(f"/dev/{node}", "")
    return machine


def healthy() -> list[GpuHealth]:
    return [GpuHealth("GPU-1")]


def told(findings: object) -> list[tuple[str, str]]:
    assert isinstance(findings, list)
    return [(finding.check, finding.status) for finding in findings]


def worst(findings: list[Finding]) -> Finding:
    return sorted(findings, key=lambda finding: ["problem", "warning", "ok"].index(finding.status))[0]


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def test_a_machine_without_a_gpu_is_fine(machine: Made) -> None:
    assert told(list(gpu.usable(machine, healthy))) == [("gpu driver", "ok")]


def test_a_gpu_that_works_is_fine(with_gpu: Made) -> None:
    findings = list(gpu.usable(with_gpu, healthy))
    assert told(findings) == [("gpu devices", "ok"), ("gpu driver", "ok"), ("gpu health", "ok")]
    assert "570.86.15" in findings[1].message
    assert "1 GPU" in findings[1].message


def test_a_gpu_without_a_driver_is_a_problem_and_no_silent_fall_back_to_the_cpu(with_gpu: Made) -> None:
    with_gpu.path("/proc/driver/nvidia/version").unlink()
    [finding] = gpu.usable(with_gpu, healthy)
    assert finding.status == "problem"
    assert "is not loaded" in finding.message
    assert finding.fix


def test_libraries_of_another_version_are_a_problem_that_a_reboot_solves(with_gpu: Made) -> None:
    def mismatch() -> list[GpuHealth]:
        raise NvmlError("nvmlInit_v2: Driver/library version mismatch")

    finding = worst(list(gpu.usable(with_gpu, mismatch)))
    assert "version mismatch" in finding.message
    assert "reboot" in finding.fix


def test_missing_libraries_are_a_problem(with_gpu: Made) -> None:
    def missing() -> list[GpuHealth]:
        raise OSError("libnvidia-ml.so.1")

    assert "is missing" in worst(list(gpu.usable(with_gpu, missing))).message


def test_a_missing_device_node_is_a_problem(with_gpu: Made) -> None:
    with_gpu.path("/dev/nvidia-uvm").unlink()
    finding = worst(list(gpu.usable(with_gpu, healthy)))
    assert (finding.check, finding.status) == ("gpu devices", "problem")
    assert "/dev/nvidia-uvm" in finding.message


@pytest.mark.parametrize(
    ("health", "status"),
    [
        (GpuHealth("GPU-1", lost=True), "problem"),
        (GpuHealth("GPU-1", row_remapping_failed=True), "problem"),
        (GpuHealth("GPU-1", uncorrected_ecc_errors=2), "warning"),
    ],
)
def test_a_broken_gpu_is_told(with_gpu: Made, health: GpuHealth, status: str) -> None:
    assert worst(list(gpu.usable(with_gpu, lambda: [health]))).status == status


def test_a_gpu_that_the_driver_does_not_see_is_a_problem(with_gpu: Made) -> None:
    assert "0 of 1 GPU" in worst(list(gpu.usable(with_gpu, list))).message


def test_preparing_does_nothing_without_a_gpu(machine: Made) -> None:
    def run(command: Sequence[str]) -> Done | None:
        raise AssertionError(command)

    machine.run = run  # type: ignore[method-assign]
    gpu.prepare(machine)


def test_who_holds_memory_of_the_gpu_is_named_unless_it_is_us(with_gpu: Made) -> None:
    with_gpu.programs["query-compute-apps"] = Done(0, "41, 9000 MiB\n42, 300 MiB")
    with_gpu.write("/proc/41/cgroup", "0::/pagebox.slice/pagebox-engine@0.service")
    with_gpu.write("/proc/42/cgroup", "0::/user.slice")
    with_gpu.write("/proc/42/comm", "python")
    [finding] = gpu.memory_holders(with_gpu)
    assert finding.message == "process 42 (python) holds 300 MiB"


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_a_tmp_without_programs_is_a_problem(machine: Made) -> None:
    machine.write("/proc/self/mounts", "tmpfs /tmp tmpfs rw,nosuid,noexec 0 0\n")
    assert [finding.status for finding in host.executable_tmp(machine)] == ["problem"]
    machine.write("/proc/self/mounts", "tmpfs /tmp tmpfs rw,nosuid 0 0\ntmpfs /tmp/x tmpfs noexec 0 0\n")
    assert list(host.executable_tmp(machine)) == []


def test_a_short_queue_of_connections_is_told(machine: Made) -> None:
    machine.write("/proc/sys/net/core/somaxconn", "128\n")
    assert [finding.check for finding in host.kernel(machine)] == ["connections"]


def test_a_full_disk_is_a_problem(machine: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda path: (2**30, 2**40))
    assert {finding.status for finding in host.disk(machine)} == {"problem"}


def test_a_failed_service_is_a_problem_with_its_own_words(machine: Made) -> None:
    machine.path("/run/systemd/system").mkdir(parents=True)
    told = "LoadState=loaded\nActiveState=failed\nResult=watchdog\nStatusText=Failed: no such model"
    machine.programs["systemctl show"] = Done(0, told)
    finding = worst(list(host.units(machine)))
    assert "no such model" in finding.message
    assert "watchdog" in finding.message


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_a_mistake_in_the_configuration_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pagebox.yaml"
    file.write_text("max_num_seq: 4\n")
    settings, [finding] = setup.read_settings(file)
    assert settings is None
    assert finding.status == "problem"
    assert "max-num-seqs" in finding.message


def test_a_server_without_keys_is_a_problem_also_behind_nginx(machine: Made) -> None:
    settings = resolve_values({"uds": "/run/pagebox/server.sock"}).settings
    assert [(finding.check, finding.status) for finding in setup.access(machine, settings)] == [("api keys", "problem")]


def test_a_file_of_keys_that_others_can_read_is_a_problem(machine: Made) -> None:
    settings = resolve_values({"api_keys_file": "/etc/pagebox/keys.yaml"}).settings
    machine.write("/etc/pagebox/keys.yaml", "")
    machine.path("/etc/pagebox/keys.yaml").chmod(0o644)
    assert worst(list(setup.access(machine, settings))).status == "problem"
    machine.path("/etc/pagebox/keys.yaml").chmod(0o640)
    assert worst(list(setup.access(machine, settings))).status == "ok"


def test_a_model_that_engines_cannot_read_is_a_problem(machine: Made) -> None:
    machine.path("/models/x").mkdir(parents=True)
    settings = resolve_values({"model": "/models/x"}).settings
    machine.path("/models").chmod(0o700)
    assert "chmod o+rx" in worst(list(setup.model(machine, settings))).fix


def test_prompts_in_the_log_are_told(machine: Made) -> None:
    settings = resolve_values({"api_key": ["k"], "max_log_len": 200}).settings
    assert [finding.check for finding in setup.access(machine, settings)] == ["logs"]


def test_a_front_that_leads_elsewhere_is_a_problem(machine: Made) -> None:
    machine.write("/etc/pagebox/nginx.conf", "server unix:/run/other.sock;")
    settings = resolve_values({"uds": "/run/pagebox/server.sock", "api_key": ["k"]}).settings
    assert worst(list(setup.front(machine, settings))).status == "problem"


def test_the_cpu_build_of_torch_on_a_machine_with_a_gpu_is_a_problem(with_gpu: Made) -> None:
    with_gpu.programs["import torch"] = Done(0, "None False")
    assert "CPU build" in worst(list(engine.torch_sees_the_gpu(with_gpu))).message
    with_gpu.programs["import torch"] = Done(0, "13.0 True")
    assert worst(list(engine.torch_sees_the_gpu(with_gpu))).status == "ok"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_every_problem_has_a_fix_and_the_exit_code_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pagebox.yaml"
    file.write_text("uds: /run/pagebox/server.sock\n")
    options = argparse.Namespace(config=file, gpu=False, prepare_gpu=False, json=True)
    assert doctor.run(options) == 1  # there is no key, and no model
    findings = json.loads(capsys.readouterr().out)
    assert all(finding["fix"] for finding in findings if finding["status"] != "ok")
    assert {"api keys", "model"} <= {finding["check"] for finding in findings if finding["status"] == "problem"}
