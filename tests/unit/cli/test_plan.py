"""`pagebox plan` for models that are nothing but a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and no weights: none are read."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_model("llama").config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_prints_the_ledger(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model", str(model), "--gpu", "l4"]) == 0
    first, *table = capsys.readouterr().out.splitlines()
    assert first == f"{model} in bfloat16 on l4"
    assert [line[:18].strip() for line in table[:8]] == [
        *("weights", "activations", "CUDA graphs", "KV cache", "request state", "driver and others", "free", "total")
    ]
    assert "256 requests (max-num-seqs) run at once" in table[8]


def test_as_json_it_has_every_number_in_bytes(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, str(model), "--gpu", "h100", "--max-model-len", "64", "--kv-cache-memory", "1MiB")
    # Keys and values of two layers, two heads of eight, two bytes each.
    assert found["kv_cache"] == 2**20
    assert found["num_blocks"] == 2**20 // (2 * 2 * 2 * 8 * 2 * 16)
    assert (found["gpu"], found["dtype"], found["max_model_len"]) == ("h100", "bfloat16", 64)
    assert found["limited_by"] == "kv-cache-memory"
    parts = ("weights", "activations", "cuda_graphs", "kv_cache", "state", "other", "free")
    assert sum(found[part] for part in parts) == found["total"]


def test_settings_count_as_they_do_for_serving(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.yaml").write_text(f"model: {model}\nmax_num_seqs: 7\n")
    monkeypatch.setenv("PAGEBOX_BLOCK_SIZE", "32")
    found = as_json(capsys, "--config", str(tmp_path / "settings.yaml"), "--gpu", "a10g", "--dtype", "float32")
    assert (found["max_num_seqs"], found["block_size"], found["dtype"]) == (7, 32, "float32")


def test_what_does_not_fit_ends_with_one_sentence_and_exit_code_1(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(model), "--gpu", "l4", "--kv-cache-memory", "16KiB"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("pagebox plan: One request of 256 tokens (max-model-len) needs")
    assert told.err.count("\n") == 1
    assert "max-model-len to" in told.err


def test_without_a_gpu_the_names_that_can_be_given_are_listed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model)]) == 2
    assert "name one with --gpu: a10g, l4, l40s, a100-40, a100-80, h100, h200." in capsys.readouterr().err


def test_the_gpu_of_the_machine_is_taken_by_itself(
    model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034, 471, 2000, 8.9'\n")
    program.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = as_json(capsys, str(model))
    assert (found["gpu"], found["total"]) == ("NVIDIA L4", 22563 * 2**20)
    assert found["other"] > 2000 * 2**20


def test_wrong_usage_is_exit_code_2(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "h100"]) == 2
    assert main(["plan", str(model / "missing"), "--gpu", "h100"]) == 2
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(model), "--gpu", "h9000"])
    assert ended.value.code == 2
    assert "h200" in capsys.readouterr().err


def test_a_folder_without_a_model_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path), "--gpu", "h100"]) == 1
    assert "no config.json" in capsys.readouterr().err
