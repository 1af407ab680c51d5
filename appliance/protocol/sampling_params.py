"""How the tokens of one request are chosen. Plain data, shared by server, engine and runner."""

from __future__ import annotations

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Parameters of one sequence, named as vLLM names them.

    `n` never reaches the engine: whoever accepts a request fans it out into `n` sequences, whose seeds are
    `seed`, `seed + 1`, …; every sequence that reaches the engine has a seed (a random one when none was given),
    so that any sequence can be repeated or resumed elsewhere.
    """

    n: int = 1
    max_tokens: int | None = 16  # None: until the context is full
    min_tokens: int = 0
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 or -1: all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()  # matched on text, by whoever detokenizes; the engine ignores it
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # number of alternatives beside the chosen token; 0: the chosen token alone
    prompt_logprobs: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    spaces_between_special_tokens: bool = True
    bad_words: tuple[str, ...] = ()  # tokenized into bad_words_token_ids before the engine sees them

    def validate(self, vocab_size: int | None = None) -> None:
        """Raise `ParameterError`, naming the field, when a value is outside its range."""
        from appliance.protocol.sampling_validation import validate

        validate(self, vocab_size)


class ParameterError(ValueError):
    """A request field has an impossible value. `param` is the field's name as the client wrote it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
