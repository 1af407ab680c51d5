"""The numbers that memory is planned with are those of the model that is built."""

from __future__ import annotations

import pytest
import torch

from appliance.models.facts import model_facts
from appliance.models.registry import ARCHITECTURES, UnsupportedModelError, model_class
from tests.support.tiny_models import CPU, FAMILIES, WINDOW, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_they_are_built(family, tied):
    config = tiny_model(family, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True).config
    config.architectures = [next(name for name in ARCHITECTURES if name.lower().startswith(family))]
    facts = model_facts(config)
    model = model_class(config.architectures)(config, 16, CPU)
    built = sum(slot.num_elements for _, slot in model.weight_slots())
    assert facts.num_parameters == built
    assert facts.weight_bytes(2) == 2 * built
    assert facts.num_rotary_tables == len(model.model.rotary_tables)
    assert facts.intermediate_size == model.model.layers[0].mlp.down_proj.weight.shape[1]


def test_a_token_takes_keys_and_values_of_all_layers():
    facts = model_facts(tiny_model("qwen3").config)
    assert (facts.num_layers, facts.num_kv_heads, facts.head_dim) == (2, 2, 24)
    assert facts.kv_bytes_per_token(2) == 2 * 2 * 2 * 24 * 2


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", (None, None)),
        ("mistral", (WINDOW, WINDOW)),
        ("qwen2", (None, WINDOW)),
        ("qwen3", (None, None)),
        ("gemma3", (WINDOW, None)),
    ],
)
def test_windows_are_given_layer_by_layer(family, windows):
    assert model_facts(tiny_model(family).config).sliding_windows == windows


@pytest.mark.parametrize(
    ("rope", "longest"),
    [
        ({"rope_type": "default"}, 256),
        ({"rope_type": "linear", "factor": 4.0}, 1024),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}, 1024),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 256),
    ],
)
def test_the_longest_context_counts_the_scaling_once(rope, longest):
    config = tiny_model("llama", rope_parameters=rope | {"rope_theta": 1e4}).config
    assert model_facts(config).max_model_len == longest


def test_gemma_counts_its_scaling_in_its_positions_already():
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert model_facts(tiny_model("gemma3", rope_parameters=rope).config).max_model_len == 256


def test_an_unknown_architecture_names_the_supported_ones():
    with pytest.raises(UnsupportedModelError) as error:
        model_class(["MambaForCausalLM"])
    assert "MambaForCausalLM" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_the_first_supported_of_several_architectures_is_taken():
    assert model_class(["Unknown", "Qwen3ForCausalLM"]) is ARCHITECTURES["Qwen3ForCausalLM"]


def test_gemma_with_images_is_refused_with_the_reason():
    with pytest.raises(UnsupportedModelError, match="image encoder"):
        model_class(["Gemma3ForConditionalGeneration"])


def test_the_model_has_no_memory_before_it_is_loaded():
    config = tiny_model("llama").config
    model = model_class(["LlamaForCausalLM"])(config, 16, CPU)
    assert all(getattr(slot.owner, slot.attribute).device == torch.device("meta") for _, slot in model.weight_slots())
