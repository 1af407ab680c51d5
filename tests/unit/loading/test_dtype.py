"""Which dtype `auto` means, by what the model was saved in and what the processor has."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig

from appliance.loading import dtype as module
from appliance.loading.dtype import choose_dtype, kv_cache_dtype
from appliance.loading.errors import ModelLoadError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("saved", "device", "has_bfloat16", "chosen"),
    [
        ("float32", CPU, True, torch.float32),
        ("bfloat16", CPU, True, torch.bfloat16),
        ("bfloat16", CPU, False, torch.float32),
        ("float16", CPU, True, torch.bfloat16),
        ("float16", CPU, False, torch.float32),
        (None, CPU, True, torch.float32),
        ("float32", GPU, False, torch.bfloat16),
        ("bfloat16", GPU, False, torch.bfloat16),
        ("float16", GPU, False, torch.float16),
    ],
)
def test_auto_follows_model_and_processor(monkeypatch, saved, device, has_bfloat16, chosen):
    monkeypatch.setattr(module, "processor_has_bfloat16", lambda: has_bfloat16)
    assert choose_dtype("auto", LlamaConfig(dtype=saved), device) == chosen


def test_auto_says_what_it_chose_and_why(caplog):
    with caplog.at_level("INFO"):
        choose_dtype("auto", LlamaConfig(dtype="float32"), CPU)
    assert "dtype auto: float32 (saved in float32)" in caplog.text


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "float16"])
def test_an_asked_dtype_is_taken(asked):
    assert choose_dtype(asked, LlamaConfig(dtype="float32"), CPU) == getattr(torch, asked)


def test_gemma_is_not_run_in_float16():
    with pytest.raises(ModelLoadError, match="use bfloat16 or float32"):
        choose_dtype("float16", Gemma3TextConfig(), CPU)
    assert choose_dtype("auto", Gemma3TextConfig(dtype="float16"), GPU) == torch.bfloat16


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kv_cache_has_the_models_dtype_or_fp8(model_dtype):
    assert kv_cache_dtype("auto", model_dtype) == model_dtype
    assert kv_cache_dtype("fp8", model_dtype) == torch.float8_e4m3fn
