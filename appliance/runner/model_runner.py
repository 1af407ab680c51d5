"""Runs one step of the model over the persistent batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.wire import TokenLogprobs
from appliance.runner.block_table import BlockTable
from appliance.runner.host_tier import HostTier
from appliance.runner.model import Model
from appliance.runner.rows import Rows
from appliance.runner.sampling.logprobs import token_logprobs
from appliance.runner.sampling.sampler import BAD_LOGITS, error_message, sample
from appliance_kernels.metadata import AttentionMetadata

# Prompt log-probabilities need a row of the vocabulary for every prompt token: that many at a time.
PROMPT_LOGPROBS_CHUNK = 256


class ModelRunner:
    """Executes `SchedulerOutput`s on the CPU, one at a time.

    kv_caches: one tensor a layer, [num_kernel_blocks, 2, num_kv_heads, kernel_block_size, head_dim].
    """

    depth = 1

    def __init__(
        self,
        model: Model,
        kv_caches: list[torch.Tensor],
        *,
        max_num_seqs: int,
        max_model_len: int,
        block_size: int,
        kernel_block_size: int | None = None,
        host_tier: HostTier | None = None,
    ) -> None:
        self._model = model
        self._host_tier = host_tier
        self._kv_caches = kv_caches
        self._rows = Rows(max_num_seqs, max_model_len)
        self._table = BlockTable(max_num_seqs, max_model_len, block_size, kernel_block_size or block_size)

    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        """Run `step` at once."""
        output = self.execute(step)
        return lambda: output

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelOutput:
        """Update rows, run one forward over all scheduled tokens, sample where a request's known tokens end."""
        if self._host_tier is not None:
            self._host_tier.copy_out(step.copies_out)
            self._host_tier.copy_in(step.copies_in)
        self._update_rows(step)
        rows = np.asarray(step.rows, dtype=np.int64)
        computed = np.asarray(step.num_computed_tokens, dtype=np.int64)
        scheduled = np.asarray(step.num_scheduled_tokens, dtype=np.int64)
        starts = np.concatenate(([0], np.cumsum(scheduled)))
        of_token = np.repeat(rows, scheduled)
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1] - computed, scheduled)
        metadata = AttentionMetadata(
            positions=torch.from_numpy(positions),
            slot_mapping=torch.from_numpy(self._table.slots(of_token, positions)),
            block_tables=torch.from_numpy(self._table.tables(rows)),
            query_start=starts.tolist(),
            seq_lens=(computed + scheduled).tolist(),
            block_size=self._table.kernel_block_size,
        )
        input_ids = torch.from_numpy(self._rows.token_ids[of_token, positions].astype(np.int64))
        complete = np.flatnonzero(computed + scheduled == self._rows.num_tokens[rows])
        last = torch.from_numpy(starts[1:][complete] - 1)
        wants_all = bool((self._rows.num_prompt_logprobs[rows] >= 0).any())
        hidden = self._model(input_ids, self._kv_caches, metadata, None if wants_all else last)

        output = ModelOutput(sampled=[[] for _ in step.rows])
        if wants_all:
            self._prompt_logprobs(output, rows, computed, scheduled, starts, hidden)
            hidden = hidden[last]
        if len(complete):
            self._sample(output, rows, complete, hidden)
        return output

    def _update_rows(self, step: SchedulerOutput) -> None:
        for row in step.released_rows:
            self._rows.release(row)
            self._table.clear(row)
        for new in step.new_rows:
            self._rows.add(new)
            self._table.clear(new.row)
            self._table.append(new.row, new.block_ids)
        for row, block_ids in step.appended_blocks.items():
            self._table.append(row, block_ids)

    def _sample(self, output: ModelOutput, rows: np.ndarray, complete: np.ndarray, hidden: torch.Tensor) -> None:
        """`hidden` [N, H] are the last tokens of the requests `complete` [N], indexes into `rows`."""
        logits = self._model.compute_logits(hidden)
        sampled = sample(logits, rows[complete], self._rows)
        self._rows.append(rows[complete], sampled.tokens)
        for i, token in zip(complete.tolist(), sampled.tokens.tolist(), strict=True):
            output.sampled[i] = [token]
        output.logprobs = {int(complete[i]): [found] for i, found in sampled.logprobs.items()}
        for i, status in sampled.errors.items():
            output.errors[int(complete[i])] = error_message(status)
            if status == BAD_LOGITS:
                output.corrupted.add(int(complete[i]))

    def _prompt_logprobs(
        self,
        output: ModelOutput,
        rows: np.ndarray,
        computed: np.ndarray,
        scheduled: np.ndarray,
        starts: np.ndarray,
        hidden: torch.Tensor,
    ) -> None:
        """The token at position p is predicted at position p - 1, so the last prompt position predicts none of it."""
        for i in np.flatnonzero(self._rows.num_prompt_logprobs[rows] >= 0):
            row = rows[i]
            first = int(computed[i]) + 1
            end = min(int(computed[i] + scheduled[i]) + 1, int(self._rows.num_prompt_tokens[row]))
            wanted = int(self._rows.num_prompt_logprobs[row])
            found: list[TokenLogprobs] = []
            for begin in range(first, end, PROMPT_LOGPROBS_CHUNK):
                positions = range(begin, min(begin + PROMPT_LOGPROBS_CHUNK, end))
                offset = int(starts[i]) + begin - first
                logits = self._model.compute_logits(hidden[offset : offset + len(positions)])
                tokens = self._rows.token_ids[row, positions.start : positions.stop].astype(np.int64)
                found += token_logprobs(logits, torch.from_numpy(tokens), [wanted] * len(positions))
            if found:
                output.prompt_logprobs[int(i)] = found
