"""The engine alone, in this process: all prompts at once, no server, no text."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

from appliance.bench.progress import Progress
from appliance.bench.workload import Shape, WorkloadError
from appliance.engine.core import EngineCore
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest, EngineReady


@dataclass(slots=True)
class Throughput:
    """What a run took and gave. A step counts the requests that ran, tokens of prompts and generated ones."""

    prompts: int
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    prompt_tokens: int = 0  # of the prompts that did not fail, those found in the prefix cache included
    cached_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    running: int = 0  # summed over the steps
    step_tokens: int = 0  # summed over the steps
    preemptions: int = 0

    def as_json(self) -> dict[str, Any]:
        """Rates are per second. Per-step means are null when no step ran."""
        done = self.prompts - len(self.failures)
        return {
            "elapsed_time": self.seconds,
            "num_requests": self.prompts,
            "failed": len(self.failures),
            "errors": sorted(set(self.failures)),
            "total_input_tokens": self.prompt_tokens,
            "total_cached_tokens": self.cached_tokens,
            "total_output_tokens": self.output_tokens,
            "requests_per_second": self._rate(done),
            "input_tokens_per_second": self._rate(self.prompt_tokens),
            "output_tokens_per_second": self._rate(self.output_tokens),
            "tokens_per_second": self._rate(self.prompt_tokens + self.output_tokens),
            "steps": self.steps,
            "mean_requests_per_step": self.running / self.steps if self.steps else None,
            "mean_tokens_per_step": self.step_tokens / self.steps if self.steps else None,
            "mean_step_ms": self.seconds * 1000 / self.steps if self.steps else None,
            "preemptions": self.preemptions,
        }

    def _rate(self, count: int) -> float:
        return count / self.seconds if self.seconds > 0 else 0.0


def random_requests(ready: EngineReady, shape: Shape, count: int, seed: int) -> list[AddRequest]:
    """Greedy requests of random token ids that generate their whole length. Raises `WorkloadError` if none can fit."""
    total = shape.prefix + shape.input + shape.output
    if total > ready.max_model_len:
        raise WorkloadError(
            f"prefix, input and output have {total} tokens together, but the context is {ready.max_model_len} tokens; "
            "lower --prefix-len, --input-len or --output-len, or raise --max-model-len"
        )
    rng = random.Random(seed)
    vocabulary = range(ready.vocab_size)
    prefix = rng.choices(vocabulary, k=shape.prefix)
    sampling = SamplingParams(max_tokens=shape.output, temperature=0.0, ignore_eos=True, seed=0)
    prompts = (prefix + rng.choices(vocabulary, k=shape.input) for _ in range(count))
    return [AddRequest(str(number), prompt, sampling, time.time()) for number, prompt in enumerate(prompts)]


def measure(core: EngineCore, requests: list[AddRequest], progress: Progress) -> Throughput:
    """Run all requests to their end. The engine must be idle, and is so afterwards."""
    result = Throughput(len(requests))
    generated = dict.fromkeys((request.request_id for request in requests), 0)
    before = core.stats()
    began = time.perf_counter()
    for request in requests:
        refusal = core.add(request)
        if refusal is not None:
            result.failures.append(refusal.error or "refused")
            progress.finished(0, failed=True)
    while core.has_work() and core.fatal_error is None:
        steps, ended = core.stats().steps, 0
        for delta in core.step():
            generated[delta.request_id] += len(delta.token_ids)
            result.cached_tokens += delta.num_cached_tokens
            if delta.finish_reason is None:
                continue
            ended += 1
            if delta.finish_reason == "error":
                result.failures.append(delta.error or "the engine gives no reason")
            else:
                result.prompt_tokens += len(requests[int(delta.request_id)].prompt_token_ids)
                result.output_tokens += generated[delta.request_id]
            progress.finished(generated[delta.request_id], failed=delta.finish_reason == "error")
        after = core.stats()
        if after.steps > steps:  # what ended in the step ran in it, but is gone by now
            result.running += after.num_running + ended
            result.step_tokens += after.iteration_tokens
    result.seconds = time.perf_counter() - began
    if core.fatal_error is not None:
        raise RuntimeError(core.fatal_error)
    after = core.stats()
    result.steps = after.steps - before.steps
    result.preemptions = after.num_preemptions - before.num_preemptions
    return result
