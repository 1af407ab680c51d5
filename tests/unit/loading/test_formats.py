"""Every weight format gives the same model."""

from __future__ import annotations

import json
import os

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.loading.errors import ModelLoadError
from appliance.loading.loader import load_model, open_checkpoint
from appliance.loading.model_config import load_config
from tests.support.gguf_files import write_gguf
from tests.support.tiny_models import CPU, FAMILIES, load, logits, prompt, reference_logits, tiny_model

PROMPT = prompt(40)


def as_pt(folder):
    """Replace a folder's safetensors file by a PyTorch file."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


@pytest.fixture
def llama(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    return model


@pytest.fixture
def expected(llama, tmp_path):
    return logits(load(tmp_path), PROMPT)


def test_split_safetensors_files_are_read_through_their_index(tmp_path, llama, expected):
    (tmp_path / "model.safetensors").unlink()
    llama.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


def test_files_that_the_index_does_not_name_are_left_alone(tmp_path, llama, expected):
    (tmp_path / "model.safetensors").unlink()
    llama.save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "consolidated.safetensors").write_bytes(b"not a checkpoint")
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


def test_pt_files_give_the_same_model(tmp_path, expected):
    as_pt(tmp_path)
    assert torch.equal(logits(load(tmp_path, "pt"), PROMPT), expected)


def test_split_pt_files_give_the_same_model(tmp_path, expected):
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


def test_pt_files_of_old_pytorch_are_read(tmp_path, expected):
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(logits(load(tmp_path, "pt"), PROMPT), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_numpy_cache_gives_the_same_model_in_every_dtype(tmp_path, dtype):
    tiny_model("llama").to(dtype).save_pretrained(tmp_path)
    expected = logits(load(tmp_path), PROMPT)
    as_pt(tmp_path)
    assert torch.equal(logits(load(tmp_path, "npcache"), PROMPT), expected)
    assert torch.equal(logits(load(tmp_path, "npcache"), PROMPT), expected)


def test_a_numpy_cache_is_made_once(tmp_path, llama):
    as_pt(tmp_path)
    load(tmp_path, "npcache")
    index = tmp_path / "numpy-cache" / "index.json"
    first = index.stat().st_ino
    load(tmp_path, "npcache")
    assert index.stat().st_ino == first
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_numpy_cache_of_other_weights_is_made_again(tmp_path, expected):
    as_pt(tmp_path)
    load(tmp_path, "npcache")
    path = tmp_path / "pytorch_model.bin"
    changed = {name: weight * 2 for name, weight in torch.load(path).items()}
    torch.save(changed, path)
    os.utime(path, ns=(1, 1))
    assert torch.equal(logits(load(tmp_path, "npcache"), PROMPT), logits(load(tmp_path, "pt"), PROMPT))


def test_a_damaged_numpy_cache_says_what_to_delete(tmp_path, llama):
    as_pt(tmp_path)
    load(tmp_path, "npcache")
    (tmp_path / "numpy-cache" / "00003.npy").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match=r"delete .*numpy-cache"):
        load(tmp_path, "npcache")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_beside_a_config_gives_the_logits_of_transformers(tmp_path, family):
    model = tiny_model(family)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    write_gguf(tmp_path / "tiny.gguf", model)
    expected = reference_logits(model, PROMPT)
    torch.testing.assert_close(logits(load(tmp_path), PROMPT), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_alone_gives_the_logits_of_transformers(tmp_path, family, tied):
    changes = {
        "qwen2": {"use_sliding_window": False},  # GGUF has no place for these windows
        "gemma3": {"query_pre_attn_scalar": 24, "layer_types": ["sliding_attention", "sliding_attention"]},
    }
    model = tiny_model(family, tie_word_embeddings=tied, **changes.get(family, {}))
    write_gguf(tmp_path / "tiny.gguf", model)
    expected = reference_logits(model, PROMPT)
    torch.testing.assert_close(logits(load(tmp_path / "tiny.gguf"), PROMPT), expected, atol=1e-4, rtol=1e-4)


def test_a_quantized_gguf_file_is_dequantized(tmp_path):
    model = tiny_model("llama", hidden_size=96, intermediate_size=128)
    write_gguf(tmp_path / "tiny.gguf", model, gguf.GGMLQuantizationType.Q8_0)
    ours, exact = logits(load(tmp_path), PROMPT), reference_logits(model, PROMPT)
    assert torch.nn.functional.cosine_similarity(ours, exact, dim=-1).min() > 0.99
    assert not torch.allclose(ours, exact, atol=1e-4)


def test_frequency_factors_in_a_gguf_file_are_those_of_llama_3(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny_model("llama", rope_parameters=rope)
    inv_freq = model.model.rotary_emb.inv_freq
    plain = 1.0 / 5000.0 ** (torch.arange(0, 8, 2) / 8)
    write_gguf(tmp_path / "tiny.gguf", model, extra={"rope_freqs.weight": (plain / inv_freq).numpy()})
    expected = reference_logits(model, PROMPT)
    torch.testing.assert_close(logits(load(tmp_path), PROMPT), expected, atol=1e-4, rtol=1e-4)


def test_dummy_weights_need_no_files_and_follow_the_seed(tmp_path):
    tiny_model("llama").config.save_pretrained(tmp_path)
    config = load_config(tmp_path, {"architectures": ["LlamaForCausalLM"]})

    def embedding(seed):
        options = {"load_format": "dummy", "dtype": torch.float32, "device": CPU, "max_model_len": 16}
        return load_model(tmp_path, config, seed=seed, **options).model.embed_tokens.weight

    first = embedding(1)
    assert torch.equal(first, embedding(1))
    assert not torch.equal(first, embedding(2))
    assert first.abs().max() <= 1e-3
    assert first.std() > 1e-4


def test_auto_prefers_safetensors_then_gguf_then_pt(tmp_path, llama):
    torch.save({}, tmp_path / "pytorch_model.bin")
    write_gguf(tmp_path / "tiny.gguf", llama)
    assert [file.path.name for file in open_checkpoint(tmp_path, "auto")] == ["model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert [file.path.name for file in open_checkpoint(tmp_path, "auto")] == ["tiny.gguf"]
    (tmp_path / "tiny.gguf").unlink()
    assert [file.path.name for file in open_checkpoint(tmp_path, "auto")] == ["pytorch_model.bin"]


def test_weights_are_converted_to_the_asked_dtype(tmp_path, llama):
    model = load(tmp_path, dtype=torch.float16)
    assert {layer.input_layernorm.weight.dtype for layer in model.model.layers} == {torch.float16}
    assert model.model.embed_tokens.weight.dtype == torch.float16


def test_progress_rises_to_one(tmp_path, llama):
    seen = []
    options = {"load_format": "auto", "dtype": torch.float32, "device": CPU, "max_model_len": 16}
    load_model(tmp_path, load_config(tmp_path), progress=seen.append, **options)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[0] > 0
    assert seen[-1] == 1.0


def test_tensors_that_the_model_computes_itself_are_ignored(tmp_path, llama, expected):
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


def test_a_second_copy_of_a_tied_head_is_ignored(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    expected = logits(load(tmp_path), PROMPT)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(101, 48)}, tmp_path / "model.safetensors")
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


@pytest.mark.parametrize("scaling", ["linear", "yarn"])
def test_scaling_is_read_from_gguf_metadata(tmp_path, scaling):
    rope = {"rope_type": scaling, "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    model = tiny_model("llama", rope_parameters=rope)
    write_gguf(tmp_path / "tiny.gguf", model)
    expected = reference_logits(model, PROMPT)
    torch.testing.assert_close(logits(load(tmp_path), PROMPT), expected, atol=1e-4, rtol=1e-4)


def test_gguf_tensors_come_back_under_their_names_and_values(tmp_path, llama):
    write_gguf(tmp_path / "whole.gguf", llama)
    whole = open_checkpoint(tmp_path / "whole.gguf", "gguf")[0]
    tensors = dict(whole.read(frozenset(whole.shapes)))
    assert set(tensors) == set(llama.state_dict())
    assert all(np.allclose(tensors[name], weight) for name, weight in llama.state_dict().items())


def split_gguf(folder, model):
    write_gguf(folder / "tiny.gguf", model, split_max_tensors=8)
    assert len(list(folder.glob("tiny-*.gguf"))) == 3


def test_a_split_gguf_model_is_read_whole(tmp_path):
    model = tiny_model("llama")
    split_gguf(tmp_path, model)
    expected = reference_logits(model, PROMPT)
    torch.testing.assert_close(logits(load(tmp_path), PROMPT), expected, atol=1e-4, rtol=1e-4)
    second = next(tmp_path.glob("*-00002-of-*.gguf"))
    torch.testing.assert_close(logits(load(second), PROMPT), expected, atol=1e-4, rtol=1e-4)


def test_a_split_gguf_model_with_a_missing_part_is_refused(tmp_path):
    split_gguf(tmp_path, tiny_model("llama"))
    next(tmp_path.glob("*-00003-of-*.gguf")).unlink()
    with pytest.raises(ModelLoadError, match="2 of the 3 files"):
        load(tmp_path)
