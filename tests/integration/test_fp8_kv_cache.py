"""What an FP8 KV cache costs in accuracy: the real model, with and without, on the same text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from appliance import LLM, SamplingParams
from appliance_kernels import cpu_attention
from appliance_kernels.fp8_cache import from_e4m3

TEXT = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")[:2400]  # about 500 tokens
# Measured on SmolLM2-135M-Instruct over three texts, in float32 and bfloat16: the cross-entropy grows by -0.002 to
# 0.014 nats a token, and single log-probabilities move by 0.19 to 0.27 (root mean square). With one bit of mantissa
# less they move by 0.44 to 0.55, and a bias that is off by one costs 6 nats. The bounds lie between.
MOST_LOSS = 0.025
MOST_SPREAD = 0.33


@dataclass(frozen=True)
class Drift:
    """How a model's log-probabilities of a text's tokens, in nats, differ from another's."""

    loss: float  # mean decrease: growth of the cross-entropy
    spread: float  # root mean square

    def within_bounds(self) -> bool:
        return abs(self.loss) < MOST_LOSS and self.spread < MOST_SPREAD


def load(model: Path, kv_cache_dtype: str) -> LLM:
    return LLM(str(model), max_model_len=1024, kv_cache_memory=64 * 2**20, kv_cache_dtype=kv_cache_dtype)


def token_logprobs(llm: LLM) -> list[float]:
    [output] = llm.generate([TEXT], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0), use_tqdm=False)
    assert output.prompt_logprobs is not None
    return [next(iter(token.values())).logprob for token in output.prompt_logprobs if token]


def drift(full: list[float], other: list[float]) -> Drift:
    differences = [a - b for a, b in zip(full, other, strict=True)]
    return Drift(
        loss=sum(differences) / len(differences),
        spread=math.sqrt(sum(d * d for d in differences) / len(differences)),
    )


@pytest.fixture(scope="module")
def full(demo_model_fp32: Path) -> list[float]:
    return token_logprobs(load(demo_model_fp32, "auto"))


@pytest.fixture(scope="module")
def fp8(demo_model_fp32: Path) -> LLM:
    return load(demo_model_fp32, "fp8")


def test_an_fp8_cache_hardly_changes_what_the_model_expects(full: list[float], fp8: LLM) -> None:
    found = drift(full, token_logprobs(fp8))
    assert found.within_bounds(), found
    assert found.spread > 0.01, "the setting has reached the cache"


def test_generation_over_an_fp8_cache_answers_the_question(fp8: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    [output] = fp8.chat([question], SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    assert "Paris" in output.outputs[0].text


def off_by_one_bias(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return from_e4m3(codes, dtype) * 2


def without_the_last_bit(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return from_e4m3((codes.view(torch.uint8) & 0xFE).view(codes.dtype), dtype)


@pytest.mark.parametrize("broken", [off_by_one_bias, without_the_last_bit])
def test_the_bounds_notice_a_wrong_conversion(
    broken: object, full: list[float], fp8: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "from_e4m3", broken)
    found = drift(full, token_logprobs(fp8))
    assert not found.within_bounds(), found
