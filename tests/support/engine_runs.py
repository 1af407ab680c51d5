"""Run prompts through the whole engine core in this process, and compare with transformers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from appliance.config import Settings
from appliance.engine.core import EngineCore
from appliance.engine.startup import build_core
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest, TokenDelta, TokenLogprobs


def build(model: Path, *, kv_tokens: int | None = None, **changes: Any) -> EngineCore:
    """An engine for `model` in float32, whose cache has room for `kv_tokens`; `changes` are settings by name."""
    changes = {"model": str(model), "dtype": "float32", "block_size": 16, **changes}
    if kv_tokens is not None:
        changes["num_gpu_blocks_override"] = kv_tokens // changes["block_size"]
    groups = {}
    for group in dataclasses.fields(Settings):
        names = {field.name for field in dataclasses.fields(getattr(Settings(), group.name))}
        mine = {name: changes.pop(name) for name in names & changes.keys()}
        groups[group.name] = dataclasses.replace(getattr(Settings(), group.name), **mine)
    assert not changes, f"no such settings: {changes}"
    core, _ = build_core(Settings(**groups), lambda *_, **__: None)
    return core


@dataclasses.dataclass
class Result:
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    def take(self, delta: TokenDelta) -> None:
        assert self.finish_reason is None, "a delta came after the last one"
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
        self.num_cached_tokens = delta.num_cached_tokens or self.num_cached_tokens
        self.finish_reason, self.error = delta.finish_reason, delta.error


def run(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Result]:
    """All prompts at once, to the end."""
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
    results = {str(i): Result() for i in range(len(prompts))}
    for i, (prompt, sampling) in enumerate(zip(prompts, each, strict=True)):
        refused = core.add(AddRequest(str(i), list(prompt), sampling, time.time()))
        if refused is not None:
            results[str(i)].take(refused)
    while core.has_work():
        for delta in core.step():
            results[delta.request_id].take(delta)
    return list(results.values())


def reference_logprobs(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> torch.Tensor:
    """Log-probabilities by transformers at every position of prompt + output: [T, vocab] float32."""
    with torch.inference_mode():
        return model(torch.tensor([[*prompt, *output]])).logits[0].float().log_softmax(-1)


def assert_greedy(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> None:
    """`output` is what greedy decoding by `model` gives: at each position, its most likely token given all before."""
    best = reference_logprobs(model, prompt, output)[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert list(output) == best
