"""Where a model comes from: a folder, a file, or Hugging Face."""

from __future__ import annotations

import pytest

from appliance.config.groups.model import ModelSettings
from appliance.loading import source
from appliance.loading.errors import ModelLoadError


@pytest.fixture(autouse=True)
def unreachable_hub(monkeypatch):
    """Hugging Face at an address where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    assert source.locate_model(ModelSettings(model=str(tmp_path), trust_remote_code=True)) == tmp_path


def test_a_local_gguf_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "tiny.gguf").touch()
    assert source.locate_model(ModelSettings(model=str(tmp_path / "tiny.gguf"))) == tmp_path / "tiny.gguf"


@pytest.mark.parametrize("model", ["/no/such/folder", "./none", "../none", "~/no-such-folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up_elsewhere(model):
    with pytest.raises(ModelLoadError, match=f"The model folder {model} does not exist"):
        source.locate_model(ModelSettings(model=model))


def test_an_id_that_cannot_be_fetched_says_both_ways_out(tmp_path):
    with pytest.raises(
        ModelLoadError, match=r"owner/name is not a local folder.*cannot be reached.*give a local folder"
    ):
        source.locate_model(ModelSettings(model="owner/name", download_dir=str(tmp_path)))


def test_an_impossible_id_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match="neither a local folder nor a Hugging Face id"):
        source.locate_model(ModelSettings(model="no spaces allowed", download_dir=str(tmp_path)))


def test_remote_code_is_only_trusted_in_a_local_folder():
    with pytest.raises(ModelLoadError, match="trust-remote-code is for local folders only"):
        source.locate_model(ModelSettings(model="owner/name", trust_remote_code=True))


def test_what_was_fetched_before_is_found_without_a_network(tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "pytorch_model.bin").touch()
    assert source.locate_model(ModelSettings(model="owner/name", download_dir=str(tmp_path))) == snapshot


def test_a_repository_without_weights_says_so(tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--owner--name"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    with pytest.raises(ModelLoadError, match=r"owner/name has no weight files \(safetensors, gguf, pt\)"):
        source.locate_model(ModelSettings(model="owner/name", download_dir=str(tmp_path)))
