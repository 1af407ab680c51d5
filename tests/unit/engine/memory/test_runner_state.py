"""What the arithmetic says of the runner's tensors is what the runner has, byte by byte, also without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from appliance.engine.memory import footprint
from appliance.engine.memory.gpus import GPUS
from appliance.engine.memory.step_shape import StepShape
from appliance.models.facts import model_facts
from appliance.runner import host_tier
from appliance.runner.cuda import model_runner, sampler
from appliance.runner.cuda.decode_step import AttentionShape
from appliance.runner.cuda.model_runner import CudaRunner
from appliance.runner.cuda.options import RunnerOptions
from appliance_kernels.triton_kernels import attention_shared_prefix
from appliance_kernels.triton_kernels.attention_configs import card
from tests.support.tiny_models import CPU, tiny_model

GPU = dataclasses.replace(GPUS["h100"], multiprocessors=card(CPU).multiprocessors)
FACTS = model_facts(tiny_model("qwen3").config)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All that an object of the runner's holds."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))
    elif type(value).__module__.startswith("appliance.runner.cuda"):
        for item in vars(value).values():
            yield from tensors(item)


def bytes_of(*parts: Any) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for part in parts for t in tensors(part)}
    return sum(storages.values())


@pytest.mark.parametrize("max_num_seqs", [8, 64])
@pytest.mark.parametrize("max_model_len", [256, 20_000])
def test_the_runner_keeps_what_was_planned(max_num_seqs: int, max_model_len: int) -> None:
    shape = StepShape(16, max_num_seqs, 4096, graph_sizes=(), shares_prefix=False)
    runner = CudaRunner(
        None,  # type: ignore[arg-type]  # never called
        [torch.zeros(2, 2, FACTS.num_kv_heads, 16, FACTS.head_dim, dtype=torch.bfloat16)],
        RunnerOptions(
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=4096,
            block_size=16,
            vocab_size=FACTS.vocab_size,
            shape=AttentionShape(FACTS.num_heads, FACTS.num_kv_heads, FACTS.head_dim, torch.bfloat16),
        ),
    )
    step = {name: value for name, value in vars(runner._step).items() if name != "_kv_caches"}
    held = bytes_of(runner._device_rows, step, runner._staging._device, runner._mixed_step._staging._device)
    # Some numbers a request (its last token, sampling parameters, …) and one row of blocks are not worth a line.
    assert held == pytest.approx(footprint.state_bytes(FACTS, shape, GPU, 2, max_model_len), rel=0.02)


def test_numbers_that_runner_and_arithmetic_share_are_the_same() -> None:
    assert model_runner.PROMPT_LOGPROBS_CHUNK == footprint.LOGIT_ROWS
    assert sampler.COPIED_AT_ONCE == footprint.EDITED_ROWS
    assert 2 * model_runner.STAGED_BLOCKS == footprint.STAGED_BLOCKS
    assert attention_shared_prefix.MOST_SPLITS == footprint.PREFIX_SPLITS


@pytest.mark.parametrize("bytes_per_block", [1000, 2**21, 2**30])
def test_the_buffers_of_a_swap_space_are_those_of_the_host_tier(bytes_per_block: int) -> None:
    assert footprint.swap_buffer_bytes(bytes_per_block) == host_tier.device_bytes(bytes_per_block)
