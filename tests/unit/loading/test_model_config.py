"""config.json, its overrides, and what is refused in it."""

from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from appliance.loading.errors import ModelLoadError
from appliance.loading.model_config import load_config
from tests.support.gguf_files import write_gguf
from tests.support.tiny_models import tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    return tmp_path


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_overrides_replace_values(folder):
    assert load_config(folder, {"max_position_embeddings": 64}).max_position_embeddings == 64


def test_an_object_among_the_overrides_is_merged_and_may_be_read_only(folder):
    rope = MappingProxyType({"rope_type": "linear", "factor": 2.0})
    parameters = load_config(folder, MappingProxyType({"rope_parameters": rope})).rope_parameters
    assert parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def test_an_override_in_the_older_spelling_keeps_the_base_frequency(folder):
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    parameters = load_config(folder, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}).rope_parameters
    assert parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}


def test_a_gguf_file_gives_the_configuration_of_the_model_in_it(tmp_path):
    model = tiny_model("qwen3", tie_word_embeddings=True)
    write_gguf(tmp_path / "tiny.gguf", model)
    config = load_config(tmp_path / "tiny.gguf")
    for name in ("vocab_size", "hidden_size", "head_dim", "num_key_value_heads", "max_position_embeddings"):
        assert getattr(config, name) == getattr(model.config, name)
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported; supported: .*LlamaForCausalLM"),
        ({"architectures": None}, "names no architecture .* supported: "),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "image encoder"),
        ({"model_type": "camel"}, "unknown model_type 'camel'"),
        ({"hidden_size": "wide"}, "config.json is not valid"),
        ({"hidden_size": 47}, "config.json is not valid: .*multiple"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized \(awq\), which is not supported"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(folder, values, message):
    edit(folder, **values)
    with pytest.raises(ModelLoadError, match=f"(?s){folder}: .*{message}"):
        load_config(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "not a JSON object")])
def test_a_broken_config_is_named(folder, content, message):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=rf"config\.json: {message}"):
        load_config(folder)


def test_a_folder_without_config_is_no_model(tmp_path):
    with pytest.raises(ModelLoadError, match=r"no config\.json"):
        load_config(tmp_path)
