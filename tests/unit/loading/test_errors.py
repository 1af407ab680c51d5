"""A model that cannot be loaded is refused with one sentence that names the file or tensor."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.loading.errors import ModelLoadError
from tests.support.gguf_files import write_gguf
from tests.support.tiny_models import load, tiny_model


@pytest.fixture
def weights(tmp_path):
    """The path of a tiny Llama's one safetensors file."""
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path / "model.safetensors"


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def test_a_missing_tensor_is_named(tmp_path, weights):
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights)
    with pytest.raises(ModelLoadError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing .*model\.safetensors"):
        load(tmp_path)


def test_several_missing_tensors_are_counted(tmp_path, weights):
    tensors = {name: tensor for name, tensor in load_file(weights).items() if ".layers.1." not in name}
    save_file(tensors, weights)
    with pytest.raises(ModelLoadError, match=r"and 8 others\) is missing"):
        load(tmp_path)


def test_an_unexpected_tensor_is_named(tmp_path, weights):
    save_file(load_file(weights) | {"model.layers.7.mlp.up_proj.weight": torch.zeros(2)}, weights)
    with pytest.raises(
        ModelLoadError, match=r"model\.safetensors: .*model\.layers\.7\.mlp\.up_proj\.weight has no place"
    ):
        load(tmp_path)


def test_a_head_that_a_tied_model_lacks_is_asked_for_when_untied(tmp_path):
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight is missing"):
        load(tmp_path, tie_word_embeddings=False)


def test_a_wrong_shape_is_shown_beside_the_right_one(tmp_path, weights):
    tensors = load_file(weights)
    tensors["model.layers.0.self_attn.k_proj.weight"] = torch.zeros(48, 48)
    save_file(tensors, weights)
    with pytest.raises(ModelLoadError, match=r"k_proj\.weight has shape \[48, 48\], but .* makes it \[16, 48\]"):
        load(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path, weights):
    tensors = load_file(weights)
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": tensors["lm_head.weight"]}, tmp_path / "b.safetensors")
    weights.unlink()
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"lm_head.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight is in two files, .*a\.safetensors and .*b\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_a_truncated_safetensors_file_is_named(tmp_path, weights, keep):
    cut(weights, keep)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors: damaged or truncated"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_truncated_pt_file_is_named(tmp_path, weights, keep):
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    cut(tmp_path / "pytorch_model.bin", keep)
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: .*damaged"):
        load(tmp_path, "pt")


@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_truncated_gguf_file_is_named(tmp_path, weights, keep):
    weights.unlink()
    write_gguf(tmp_path / "tiny.gguf", tiny_model("llama"))
    cut(tmp_path / "tiny.gguf", keep)
    with pytest.raises(ModelLoadError, match=r"tiny\.gguf: damaged or truncated"):
        load(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pt_file_with_code_in_it_is_not_executed(tmp_path, weights, capsys):
    torch.save({"model.norm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: .*convert the model to safetensors"):
        load(tmp_path, "pt")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin"):
        load(tmp_path, "pt")
    assert "executed" not in capsys.readouterr().out


def test_a_pt_file_that_is_not_a_dictionary_of_tensors_is_refused(tmp_path, weights):
    torch.save({"model": {"norm": torch.zeros(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"pytorch_model\.bin: not a plain dictionary"):
        load(tmp_path, "pt")


def test_a_shard_that_is_not_there_is_named(tmp_path, weights):
    weights.unlink()
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelLoadError, match=r"1 of the \d weight files .* the first is model-00002"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": 3}', "{}"])
def test_a_bad_index_is_named(tmp_path, weights, content):
    weights.unlink()
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json: not a checkpoint index"):
        load(tmp_path)


@pytest.mark.parametrize("load_format", ["auto", "safetensors", "pt", "npcache", "gguf"])
def test_a_folder_without_weights_says_what_was_looked_for(tmp_path, weights, load_format):
    weights.unlink()
    names = {"auto": r"model\.safetensors.*gguf.*pytorch_model", "gguf": r"\*\.gguf", "safetensors": "safetensors"}
    with pytest.raises(
        ModelLoadError, match=f"load-format {load_format}.*{names.get(load_format, 'pytorch_model.bin')}"
    ):
        load(tmp_path, load_format)


def test_two_gguf_models_in_a_folder_are_ambiguous(tmp_path, weights):
    weights.unlink()
    model = tiny_model("llama")
    write_gguf(tmp_path / "one.gguf", model)
    write_gguf(tmp_path / "two.gguf", model)
    with pytest.raises(ModelLoadError, match=r"several GGUF models \(one\.gguf, two\.gguf\); give the file"):
        load(tmp_path)


def test_an_unsupported_activation_names_the_supported_ones(tmp_path, weights):
    with pytest.raises(ModelLoadError, match=r"'relu2' is not supported .*silu"):
        load(tmp_path, hidden_act="relu2")


def test_a_numpy_cache_that_cannot_be_written_says_why(tmp_path, weights):
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    (tmp_path / "numpy-cache").write_text("a file where the folder should be")
    with pytest.raises(ModelLoadError, match="numpy-cache: the NumPy copy of the weights cannot be written"):
        load(tmp_path, "npcache")
