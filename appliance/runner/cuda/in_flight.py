"""A step that the device works on: where its outcome will be, and whom it concerns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from appliance.engine.step import ModelOutput
from appliance.protocol.wire import TokenLogprobs
from appliance.runner.cuda.sampler import DeviceSamples
from appliance.runner.rows import Rows
from appliance.runner.sampling.sampler import BAD_LOGITS, error_message


@dataclass(slots=True)
class Sampled:
    """The rows of a step that get a token; arrays [N] run in parallel."""

    places: np.ndarray  # index in the step's rows
    rows: np.ndarray
    positions: np.ndarray  # of the new token
    tenures: np.ndarray  # which request held the row: it may have another by the time the token is known
    samples: DeviceSamples
    tokens_and_status: torch.Tensor  # [2, N] int32 on the host, filled once the step is done


@dataclass(slots=True)
class InFlight:
    """Waits for the device at most once, whoever asks first."""

    num_requests: int
    done: torch.cuda.Event | None  # None: it is done
    sampled: Sampled | None
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    _noted: bool = False

    def note_tokens(self, batch: Rows, tenures: np.ndarray) -> None:
        """Wait for the step, and let the host's rows know its tokens. `tenures` [rows] are those of now."""
        if self._noted:
            return
        if self.done is not None:
            self.done.synchronize()
        self._noted = True
        sampled = self.sampled
        if sampled is not None:
            still = tenures[sampled.rows] == sampled.tenures
            tokens = sampled.tokens_and_status[0].numpy()
            batch.place(sampled.rows[still], sampled.positions[still], tokens[still])

    def output(self) -> ModelOutput:
        """The outcome, after `note_tokens`."""
        output = ModelOutput(sampled=[[] for _ in range(self.num_requests)], prompt_logprobs=self.prompt_logprobs)
        sampled = self.sampled
        if sampled is None:
            return output
        tokens, status = sampled.tokens_and_status.tolist()
        places = sampled.places.tolist()
        for place, token in zip(places, tokens, strict=True):
            output.sampled[place] = [token]
        output.logprobs = {places[i]: [found] for i, found in sampled.samples.logprobs().items()}
        if any(status):
            output.errors = {place: error_message(code) for place, code in zip(places, status, strict=True) if code}
            output.corrupted = {place for place, code in zip(places, status, strict=True) if code == BAD_LOGITS}
        return output
