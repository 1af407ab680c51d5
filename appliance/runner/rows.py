"""The persistent batch: what the runner remembers of each request from admission to finish."""

from __future__ import annotations

import numpy as np

from appliance.engine.step import NewRow
from appliance.protocol.sampling_params import SamplingParams
from appliance.runner.sampling.row_constraints import RowConstraints

GREEDY_BELOW = 1e-5
MAX_TEMPERATURE = 1e30


class Rows:
    """Arrays with one row a request. A row is written when a request takes it and by each sampled token; nothing is
    rebuilt between steps."""

    def __init__(self, max_num_seqs: int, max_model_len: int) -> None:
        self.token_ids = np.zeros((max_num_seqs, max_model_len), dtype=np.int32)
        self.num_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, dtype=np.int64)
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int64)  # 0: all
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.seed = np.zeros(max_num_seqs, dtype=np.uint64)
        self.num_logprobs = np.full(max_num_seqs, -1, dtype=np.int64)  # -1: none wanted
        self.num_prompt_logprobs = np.full(max_num_seqs, -1, dtype=np.int64)
        self.constrained = np.zeros(max_num_seqs, dtype=bool)  # logits are edited before sampling
        self.constraints: dict[int, RowConstraints] = {}  # of the constrained rows

    def add(self, new: NewRow) -> None:
        row, params, count = new.row, new.sampling, len(new.token_ids)
        assert params.seed is not None
        self.token_ids[row, :count] = new.token_ids
        self.num_tokens[row] = count
        self.num_prompt_tokens[row] = new.num_prompt_tokens
        self.temperature[row] = 0.0 if params.top_k == 1 else _temperature(params.temperature)
        self.top_k[row] = max(params.top_k, 0)
        self.top_p[row] = params.top_p
        self.min_p[row] = params.min_p
        self.seed[row] = np.uint64(params.seed & (2**64 - 1))
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        self.num_prompt_logprobs[row] = (
            params.prompt_logprobs if new.wants_prompt_logprobs and params.prompt_logprobs is not None else -1
        )
        self.constrained[row] = _edits_logits(params)
        if self.constrained[row]:
            self.constraints[row] = RowConstraints(params, new.stop_token_ids, new.num_prompt_tokens)

    def append(self, rows: np.ndarray, token_ids: np.ndarray) -> None:
        """One sampled token for each of `rows`."""
        self.place(rows, self.num_tokens[rows], token_ids)
        self.num_tokens[rows] += 1

    def place(self, rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> None:
        """Note tokens that are counted already. The last position of a full row has no place and needs none."""
        fits = positions < self.token_ids.shape[1]
        self.token_ids[rows[fits], positions[fits]] = token_ids[fits]

    def release(self, row: int) -> None:
        self.constraints.pop(row, None)
        self.constrained[row] = False
        self.num_tokens[row] = 0

    def text(self, row: int) -> np.ndarray:
        """[num_tokens] int32, a view."""
        return self.token_ids[row, : self.num_tokens[row]]


def _temperature(value: float) -> float:
    """Within float32's reach: below `GREEDY_BELOW` any difference of two logits is as good as infinite."""
    return 0.0 if value < GREEDY_BELOW else min(value, MAX_TEMPERATURE)


def _edits_logits(p: SamplingParams) -> bool:
    return bool(
        p.logit_bias
        or p.allowed_token_ids is not None
        or p.bad_words_token_ids
        or p.min_tokens
        or p.presence_penalty
        or p.frequency_penalty
        or p.repetition_penalty != 1.0
    )
