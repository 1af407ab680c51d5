"""Rows filled by hand for the sampler's tests."""

from __future__ import annotations

import numpy as np
import torch

from appliance.engine.step import NewRow
from appliance.protocol.sampling_params import SamplingParams
from appliance.runner.rows import Rows
from appliance.runner.sampling.sampler import Sampled, sample


def new_row(
    row: int, prompt: list[int], output: list[int] | None = None, *, stop_token_ids=(), seed=0, **params
) -> NewRow:
    tokens = prompt + (output or [])
    return NewRow(
        row=row,
        request_id=f"r{row}",
        token_ids=tokens,
        num_prompt_tokens=len(prompt),
        block_ids=[],
        sampling=SamplingParams(seed=seed, **params),
        stop_token_ids=frozenset(stop_token_ids),
    )


def sample_rows(logits: torch.Tensor, *rows: NewRow) -> Sampled:
    """Sample `rows`, whose row numbers are 0, 1, …, from `logits` [N, vocab]."""
    batch = Rows(len(rows), 256)
    for row in rows:
        batch.add(row)
    return sample(logits.clone(), np.arange(len(rows)), batch)
