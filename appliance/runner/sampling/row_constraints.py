"""What edits the logits of one request, on the host."""

from __future__ import annotations

import numpy as np

from appliance.protocol.sampling_params import SamplingParams
from appliance.runner.sampling.text_tokens import TextTokens

_FLOAT32 = np.finfo(np.float32)


class RowConstraints:
    """Kept from a request's admission to its end or preemption."""

    def __init__(self, params: SamplingParams, stop_token_ids: frozenset[int], num_prompt_tokens: int) -> None:
        self.restricted = params.allowed_token_ids is not None
        bias = params.logit_bias or {}
        tokens = params.allowed_token_ids if params.allowed_token_ids is not None else bias
        self.biased_tokens = np.unique(np.fromiter(tokens, np.int32))
        self.biases = np.array([bias.get(token, 0.0) for token in self.biased_tokens.tolist()], np.float32)
        self.penalties: tuple[float, float, float] | None = None
        if params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty:
            # not zero, by which it may divide
            factor = min(max(params.repetition_penalty, _FLOAT32.tiny), _FLOAT32.max)
            self.penalties = factor, params.presence_penalty, params.frequency_penalty
        self.text = TextTokens(num_prompt_tokens)
        self._bad_words = params.bad_words_token_ids
        self._min_length = num_prompt_tokens + params.min_tokens if stop_token_ids else 0
        self._stop_token_ids = sorted(stop_token_ids)
        self._num_prompt_tokens = num_prompt_tokens

    def reads_text(self, num_tokens: int) -> bool:
        """Whether the edits depend on the tokens sampled since the text had at least `num_tokens`."""
        return self.penalties is not None or bool(self._bad_words) or num_tokens < self._min_length

    def edits(self, tokens: np.ndarray) -> bool:
        """Whether anything is edited after the text `tokens`."""
        return self.restricted or len(self.biases) > 0 or self.penalties is not None or len(self.bans(tokens)) > 0

    def bans(self, tokens: np.ndarray) -> list[int]:
        """What may not follow the text `tokens`: what ends it before `min_tokens`, and what completes a bad word."""
        count = len(tokens)
        banned = list(self._stop_token_ids) if count < self._min_length else []
        for word in self._bad_words:
            before = len(word) - 1
            # Only generated tokens count: a prompt that ends with the word's beginning is the client's own choice.
            if count - self._num_prompt_tokens >= before and tuple(tokens[count - before :]) == word[:-1]:
                banned.append(word[-1])
        return banned
