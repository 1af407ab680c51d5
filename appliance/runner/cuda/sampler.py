"""The sampling of one step on the device. What it means is `appliance.runner.sampling.sampler.sample`.

Nothing here waits for the device: what the host knows goes there in one copy, results come back in copies that the
caller waits for. Rows whose logits are edited are gathered into a small float32 tensor, sampled there, and their tokens
put in place; all others are read where the model left them, in its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from appliance.protocol.wire import TokenLogprobs
from appliance.runner.rows import Rows
from appliance.runner.sampling.constraints import apply_edits, collect_edits, edited_rows, to_device
from appliance.runner.sampling.logprobs import logprob_tensors, to_wire
from appliance.runner.sampling.sampler import BAD_LOGITS, NO_TOKEN_LEFT
from appliance_kernels.triton_kernels import sampling
from appliance_kernels.triton_kernels.draws import SamplingRows
from appliance_kernels.triton_kernels.logprobs import MAX_TOP, token_logprobs

# Rows whose logits are copied to float32 at a time: 19 MiB with 152,000 tokens.
COPIED_AT_ONCE = 32


@dataclass(slots=True)
class _Logprobs:
    """Of some of a step's tokens, on their way to the host."""

    indices: list[int]  # [M]
    counts: list[int]  # [M], alternatives wanted
    tensors: list[torch.Tensor]  # tokens [M], and what `logprob_tensors` gives


@dataclass(slots=True)
class DeviceSamples:
    """Parallel to the rows that were given."""

    tokens_and_status: torch.Tensor  # [2, N] int32 on the device: ids; OK, BAD_LOGITS or NO_TOKEN_LEFT
    _logprobs: list[_Logprobs]

    def logprobs(self) -> dict[int, TokenLogprobs]:
        """By index. Only once the device has done the step."""
        return {
            index: found
            for part in self._logprobs
            for index, found in zip(part.indices, to_wire(part.counts, *part.tensors), strict=True)
        }


class DeviceSampler:
    """Chooses tokens for rows of the persistent batch, whose parameters are in `rows` (host) and `params` (device)."""

    def __init__(self, rows: Rows, params: SamplingRows, device: torch.device) -> None:
        self._rows = rows
        self._params = params
        self._device = device

    def needs_host_tokens(self, rows: np.ndarray) -> bool:
        """Whether some of `rows` [N] int64 have edits that depend on their text: then the host's `Rows` must know all
        tokens sampled so far before `sample` is called."""
        constrained = rows[self._rows.constrained[rows]].tolist()
        return any(self._rows.constraints[row].reads_text(int(self._rows.num_tokens[row])) for row in constrained)

    def sample(self, logits: torch.Tensor, rows: np.ndarray, device_rows: torch.Tensor) -> DeviceSamples:
        """The next token of requests `rows` [N] int64, which `device_rows` [N] int32 are on the device.

        logits [N, vocab] bfloat16, float16 or float32, rows contiguous; not changed.
        """
        samples = torch.empty(2, len(rows), dtype=torch.int32, device=self._device)
        edited = edited_rows(rows, self._rows)
        unedited = np.ones(len(rows), dtype=bool)
        unedited[edited] = False
        # Edited rows take part too, for their status: broken logits stay broken whatever the edits take away.
        self._choose(logits, rows[unedited], device_rows, samples)
        for start in range(0, len(edited), COPIED_AT_ONCE):
            self._sample_edited(logits, rows, device_rows, edited[start : start + COPIED_AT_ONCE], samples)
        return DeviceSamples(samples, self._logprobs(logits, rows, samples[0]))

    def _choose(self, logits: torch.Tensor, rows: np.ndarray, device_rows: torch.Tensor, samples: torch.Tensor) -> None:
        """Write tokens and status of all logits, with what the host's `rows` [any] need of the methods."""
        batch = self._rows
        drawn = rows[batch.temperature[rows] > 0.0]
        if not len(drawn):
            sampling.greedy(logits, tokens=samples[0], status=samples[1])
            return
        truncated = bool((batch.top_k[drawn] > 0).any() or (batch.top_p[drawn] < 1.0).any())
        sampling.sample(logits, device_rows, self._params, truncated=truncated, tokens=samples[0], status=samples[1])

    def _sample_edited(
        self,
        logits: torch.Tensor,
        rows: np.ndarray,
        device_rows: torch.Tensor,
        edited: np.ndarray,
        samples: torch.Tensor,
    ) -> None:
        index = to_device([edited.astype(np.int32)], self._device)[0]
        some = logits.index_select(0, index).float()
        apply_edits(some, collect_edits(rows[edited], np.arange(len(edited)), self._rows))
        chosen = torch.empty(2, len(edited), dtype=torch.int32, device=self._device)
        self._choose(some, rows[edited], device_rows.index_select(0, index), chosen)
        broken = samples[1].index_select(0, index)
        chosen[1] = torch.where(broken == BAD_LOGITS, broken, NO_TOKEN_LEFT * chosen[1])
        samples.index_copy_(1, index.long(), chosen)

    def _logprobs(self, logits: torch.Tensor, rows: np.ndarray, tokens: torch.Tensor) -> list[_Logprobs]:
        counts = self._rows.num_logprobs[rows]
        few, many = np.flatnonzero((counts >= 0) & (counts <= MAX_TOP)), np.flatnonzero(counts > MAX_TOP)
        parts = [few] if len(few) else []
        parts += [many[start : start + COPIED_AT_ONCE] for start in range(0, len(many), COPIED_AT_ONCE)]
        results = []
        for part in parts:
            index = to_device([part.astype(np.int32)], self._device)[0]
            own_tokens = tokens.index_select(0, index)
            top = int(counts[part].max())
            if top <= MAX_TOP:
                found = token_logprobs(logits, own_tokens, top, index=index)
            else:
                found = logprob_tensors(logits.index_select(0, index).float(), own_tokens, top)
            copies = [_start_copy(x) for x in (own_tokens, *found)]
            results.append(_Logprobs(part.tolist(), counts[part].tolist(), copies))
        return results


def prompt_logprobs(logits: torch.Tensor, tokens: torch.Tensor, count: int) -> list[TokenLogprobs]:
    """Log-probabilities of `tokens` [N], integers on the device, and of the `count` most likely in place of each.

    logits [N, vocab] as `DeviceSampler.sample` takes them. Waits for the device.
    """
    if count <= MAX_TOP:
        found = token_logprobs(logits, tokens, count)
    else:
        found = logprob_tensors(logits.float(), tokens, count)
    return to_wire([count] * len(tokens), tokens, *found)


def _start_copy(x: torch.Tensor) -> torch.Tensor:
    if x.device.type != "cuda":
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
