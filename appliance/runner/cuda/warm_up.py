"""Steps that are run before an engine is ready: the largest, to see what it takes, and one of each kind, so that no
kernel is compiled or loaded while a request waits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from appliance.engine.step import NewRow, SchedulerOutput
from appliance.protocol.sampling_params import SamplingParams
from appliance.runner.cuda.model_runner import CudaRunner
from appliance.runner.cuda.options import RunnerOptions

# Together these take every path through the samplers.
KINDS = (
    SamplingParams(temperature=0.0, seed=0),
    SamplingParams(temperature=1.0, seed=0),
    SamplingParams(temperature=1.0, min_p=0.1, seed=0),
    SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=0),
    SamplingParams(temperature=0.0, logprobs=2, seed=0),
    SamplingParams(temperature=0.0, prompt_logprobs=2, seed=0),
    SamplingParams(temperature=0.0, logit_bias={0: 1.0}, seed=0),
    SamplingParams(temperature=1.0, top_k=20, top_p=0.9, logit_bias={0: 1.0}, seed=0),
    SamplingParams(
        temperature=1.0,
        logit_bias={0: 1.0},
        allowed_token_ids=(0, 1),
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        min_tokens=1,
        seed=0,
    ),
)
PLAIN_KINDS = 4  # the first so many, which a step may have hundreds of


def run_largest_step(runner: CudaRunner) -> int:
    """Run as many tokens and requests as a step may have, drawn in every plain way.

    Returns the peak of bytes that were allocated during it, less those that are allocated anyway.
    """
    options = runner.options
    device = runner.device
    count = options.max_num_seqs
    length = max(1, min(options.max_num_batched_tokens // count, options.max_model_len - 1))
    new_rows = [_new_row(row, length, length, KINDS[row % PLAIN_KINDS], options) for row in range(count)]
    step = SchedulerOutput(0, list(range(count)), [0] * count, [length] * count, new_rows)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.submit(step)()
    return torch.cuda.max_memory_allocated(device) - before


def run_every_kind_of_step(runner: CudaRunner) -> None:
    """Prompts alone, beside decodes, and in chunks; decodes alone; each with every kind of sampling."""
    for sampling in KINDS:
        for step in _every_kind(sampling, runner.options):
            runner.submit(step)()


def _every_kind(sampling: SamplingParams, options: RunnerOptions) -> Iterator[SchedulerOutput]:
    yield SchedulerOutput(0, [0], [0], [2], [_new_row(0, 2, 5, sampling, options)])
    if options.max_num_seqs == 1:
        yield SchedulerOutput(1, [0], [2], [1])
        return
    yield SchedulerOutput(1, [0, 1], [2, 0], [1, 2], [_new_row(1, 5, 7, sampling, options)])
    yield SchedulerOutput(2, [1], [2], [3])
    yield SchedulerOutput(3, [0, 1], [3, 5], [1, 1])


def _new_row(row: int, length: int, longest: int, sampling: SamplingParams, options: RunnerOptions) -> NewRow:
    """A request with `length` tokens, which may become `longest`. All its blocks are block 0: nobody reads results."""
    return NewRow(
        row=row,
        request_id=f"warm-up-{row}",
        token_ids=[0] * length,
        num_prompt_tokens=length,
        block_ids=[0] * -(-longest // options.block_size),
        sampling=sampling,
        stop_token_ids=frozenset((0,)),
        wants_prompt_logprobs=sampling.prompt_logprobs is not None,
    )
