"""The rotary tables of every kind of scaling, in both ways of writing a config.json."""

from __future__ import annotations

import json

import pytest
import torch

from appliance.models.layers.rotary import inverse_frequencies
from tests.support.tiny_models import load, logits, prompt, reference_logits, tiny_model

THETA = 5000.0
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with all its parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
    },
    "yarn with a given magnitude": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "attention_factor": 1.5,
    },
}
PROMPT = prompt(200)


@pytest.mark.parametrize("kind", SCALINGS)
def test_a_scaling_gives_the_logits_of_transformers(tmp_path, kind):
    reference = tiny_model("llama", rope_parameters=SCALINGS[kind] | {"rope_theta": THETA}, head_dim=16)
    reference.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(load(tmp_path), PROMPT), reference_logits(reference, PROMPT), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", SCALINGS)
def test_the_older_spelling_of_config_json_means_the_same(tmp_path, kind):
    tiny_model("llama", rope_parameters=SCALINGS[kind] | {"rope_theta": THETA}).save_pretrained(tmp_path)
    expected = logits(load(tmp_path), PROMPT)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    scaling = dict(SCALINGS[kind])
    scaling["type"] = scaling.pop("rope_type")
    config |= {"rope_theta": THETA, "rope_scaling": None if kind == "default" else scaling}
    path.write_text(json.dumps(config))
    assert torch.equal(logits(load(tmp_path), PROMPT), expected)


def test_gemma_scales_only_the_layers_that_see_everything(tmp_path):
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    reference = tiny_model("gemma3", rope_parameters=rope)
    reference.save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits(load(tmp_path), PROMPT), reference_logits(reference, PROMPT), atol=2e-4, rtol=1e-4
    )


def test_frequency_factors_of_a_gguf_file_divide_the_frequencies():
    plain, _ = inverse_frequencies({"rope_type": "default", "rope_theta": THETA}, 8, 256)
    rope = {"rope_type": "frequency_factors", "rope_theta": THETA, "factors": [1.0, 2.0, 4.0, 8.0]}
    divided, magnitude = inverse_frequencies(rope, 8, 256)
    assert torch.equal(divided, plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))
    assert magnitude == 1.0


def test_part_of_a_head_can_be_rotated():
    frequencies, _ = inverse_frequencies({"rope_theta": THETA, "partial_rotary_factor": 0.5}, 16, 256)
    assert torch.equal(frequencies, inverse_frequencies({"rope_theta": THETA}, 8, 256)[0])


def test_an_unknown_scaling_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'spiral' is not supported .*llama3, yarn"):
        inverse_frequencies({"rope_type": "spiral", "rope_theta": THETA}, 16, 256)
