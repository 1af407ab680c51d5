"""A model is made batch-invariant as a whole: no matrix product is left out, and it still computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from appliance.models.layers.linear import make_batch_invariant
from appliance_kernels.linear import InvariantWeight
from tests.support.tiny_models import load, logits, prompt, tiny_model


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model is on the CPU, and so Triton must be interpreted")
@pytest.mark.parametrize("family", ["qwen2", "gemma3"])  # with biases; with a tied head
def test_every_product_is_invariant_and_the_model_means_the_same(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    model = load(tmp_path)
    want = logits(model, prompt(20))
    products = {id(layer): layer for layer in model.all_layers() if hasattr(layer, "into")}
    assert len(products) == 2 * 4 + 1
    make_batch_invariant(model)
    assert all(isinstance(layer.weight, InvariantWeight) for layer in products.values())
    torch.testing.assert_close(logits(model, prompt(20)), want, atol=1e-4, rtol=1e-4)
