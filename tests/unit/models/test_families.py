"""Every family computes what transformers computes."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_models import FAMILIES, WINDOW, load, logits, prompt, reference_logits, tiny_model

PROMPT = prompt(5 * WINDOW + 1)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}

VARIANTS = {
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with as many key heads as heads": ("llama", {"num_key_value_heads": 6}),
    "llama with a wide head": ("llama", {"head_dim": 32}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
    "qwen2 tied, without windows": ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "qwen3 with windows": ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}),
    "gemma3 untied": ("gemma3", {"tie_word_embeddings": False}),
    "gemma3 with a cap on the logits": ("gemma3", {"final_logit_softcapping": 3.0}),
    "gemma3 with biases": ("gemma3", {"attention_bias": True}),
}


def assert_same_logits(tmp_path, family, **changes):
    reference = tiny_model(family, **changes)
    reference.save_pretrained(tmp_path)
    ours = logits(load(tmp_path), PROMPT)
    expected = reference_logits(reference, PROMPT)
    assert expected.std() > 0.1  # logits that are all alike would prove nothing
    torch.testing.assert_close(ours, expected, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_logits_of_transformers(tmp_path, family):
    assert_same_logits(tmp_path, family)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_gives_the_logits_of_transformers(tmp_path, variant):
    family, changes = VARIANTS[variant]
    assert_same_logits(tmp_path, family, **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(tmp_path, family):
    tiny_model(family).save_pretrained(tmp_path)
    model = load(tmp_path)
    torch.testing.assert_close(logits(model, PROMPT, [1, 17, 1, 42]), logits(model, PROMPT), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_float32(tmp_path, family):
    tiny_model(family).save_pretrained(tmp_path)
    exact = logits(load(tmp_path), PROMPT)
    rounded = logits(load(tmp_path, dtype=torch.bfloat16), PROMPT)
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.99
