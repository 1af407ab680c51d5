from __future__ import annotations

from pathlib import Path

import pytest

from appliance.engine.memory.gpus import DRIVER_BYTES, GPUS, Gpu, gpu_from_query, local_gpu

MIB = 2**20
LINE = "NVIDIA H100 80GB HBM3, 81559, 469, 1024, 9.0"


def install_nvidia_smi(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_table_names_each_gpu_as_the_option_does() -> None:
    assert list(GPUS) == ["a10g", "l4", "l40s", "a100-40", "a100-80", "h100", "h200"]
    assert all(gpu.driver_bytes < gpu.total_bytes // 10 for gpu in GPUS.values())


def test_what_the_driver_reserves_is_not_counted_and_what_others_use_is() -> None:
    assert gpu_from_query(LINE) == Gpu(
        "NVIDIA H100 80GB HBM3", 81_090 * MIB, (9, 0), 132, GPUS["h100"].driver_bytes, 1024 * MIB
    )


def test_an_unknown_gpu_is_taken_as_it_says_with_the_largest_driver() -> None:
    found = gpu_from_query("NVIDIA Something, 50000, 500, 0, 12.0\n")
    assert found == Gpu("NVIDIA Something", 49_500 * MIB, (12, 0), 132, DRIVER_BYTES, 0)


def test_a_driver_that_hides_what_it_reserves_is_taken_to_reserve_the_usual() -> None:
    found = gpu_from_query("NVIDIA L40S, 46068, [N/A], 0, 8.9")
    assert found is not None
    assert (found.total_bytes, found.multiprocessors) == (GPUS["l40s"].total_bytes, 142)


@pytest.mark.parametrize("answer", ["", "No devices were found", "NVIDIA A, [N/A], 1, 1, 9.0", "a, 1, 1"])
def test_an_answer_without_a_gpu_is_none(answer: str) -> None:
    assert gpu_from_query(answer) is None


def test_the_gpu_of_the_machine_is_asked_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    install_nvidia_smi(tmp_path, f'[ "$1" = --id=0 ] && echo "{LINE}"', monkeypatch)
    assert local_gpu() == gpu_from_query(LINE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    install_nvidia_smi(tmp_path, f'[ "$1" = --id=3 ] && echo "{LINE}"', monkeypatch)
    assert local_gpu() == gpu_from_query(LINE)


def test_without_driver_or_visible_gpu_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_gpu() is None
    install_nvidia_smi(tmp_path, "exit 9", monkeypatch)
    assert local_gpu() is None
    install_nvidia_smi(tmp_path, f'echo "{LINE}"', monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local_gpu() is None
