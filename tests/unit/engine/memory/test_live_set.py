"""Which tensors of a layer are alive at the same time, counted while the models' own code runs.

The operations are stand-ins that allocate what the GPU's do, their results, and compute nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.profiler import profile

from appliance.engine.memory.footprint import layer_bytes_per_token
from appliance.models.causal_lm import CausalLM
from appliance.models.facts import ModelFacts, model_facts
from appliance.models.layers import attention, norm
from tests.support.tiny_models import load, tiny_model

TOKENS = 500


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def rotary_and_write_kv(
        qkv: torch.Tensor, rotary: Any, cache: Any, metadata: Any, heads: int, kv_heads: int, qk_norm: Any
    ) -> torch.Tensor:
        return qkv.view(len(qkv), heads + 2 * kv_heads, -1)[:, :heads]  # in place

    monkeypatch.setattr(norm, "rms_norm", lambda x, weight, eps: torch.empty_like(x))
    monkeypatch.setattr(norm, "add_rms_norm", lambda x, r, weight, eps: (torch.empty_like(x), torch.empty_like(x)))
    monkeypatch.setattr(attention, "rotary_and_write_kv", rotary_and_write_kv)
    monkeypatch.setattr(attention, "paged_attention", lambda q, *rest: torch.empty(q.shape))
    monkeypatch.setattr("appliance.models.causal_lm.rotary_rows", lambda table, metadata, dtype: None)


def built(folder: Path, family: str, intermediate_size: int) -> tuple[CausalLM, ModelFacts]:
    source = tiny_model(family, intermediate_size=intermediate_size)
    source.save_pretrained(folder)
    model = load(folder)
    for layer in model.model.layers:
        layer.mlp.activate = lambda x: torch.empty(x.shape[0], x.shape[1] // 2)
    return model, model_facts(source.config)


def peak(model: CausalLM) -> int:
    """Bytes allocated at most while the model runs over `TOKENS` tokens, of which the last is read."""
    ids = torch.zeros(TOKENS, dtype=torch.int32)
    with torch.inference_mode(), profile(profile_memory=True) as events:
        model(ids, [None] * 2, None, torch.tensor([TOKENS - 1]))  # type: ignore[list-item, arg-type]
    changes = [event for event in events.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
@pytest.mark.parametrize("intermediate_size", [400, 16])
def test_a_layers_peak_is_as_planned(tmp_path: Path, family: str, intermediate_size: int) -> None:
    model, facts = built(tmp_path, family, intermediate_size)
    assert peak(model) / TOKENS == pytest.approx(layer_bytes_per_token(facts, 4), rel=0.02)
