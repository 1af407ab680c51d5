"""The ranges of sampling parameters; the one place that knows them."""

from __future__ import annotations

import math

from appliance.protocol.sampling_params import ParameterError, SamplingParams

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16


def validate(p: SamplingParams, vocab_size: int | None) -> None:
    """Raise `ParameterError` for the first field out of range."""
    _require(1 <= p.n <= 128, "n", f"n must be between 1 and 128, got {p.n}")
    _require(
        p.max_tokens is None or p.max_tokens >= 1, "max_tokens", f"max_tokens must be at least 1, got {p.max_tokens}"
    )
    _require(p.min_tokens >= 0, "min_tokens", f"min_tokens must be at least 0, got {p.min_tokens}")
    _require(
        p.max_tokens is None or p.min_tokens <= p.max_tokens,
        "min_tokens",
        f"min_tokens ({p.min_tokens}) must not exceed max_tokens ({p.max_tokens})",
    )
    _number("temperature", p.temperature, 0.0, math.inf)
    _require(p.top_k >= -1, "top_k", f"top_k must be -1 or 0 (all) or a positive number, got {p.top_k}")
    _number("top_p", p.top_p, 0.0, 1.0, above=True)
    _number("min_p", p.min_p, 0.0, 1.0)
    _number("presence_penalty", p.presence_penalty, -2.0, 2.0)
    _number("frequency_penalty", p.frequency_penalty, -2.0, 2.0)
    _number("repetition_penalty", p.repetition_penalty, 0.0, math.inf, above=True)
    _require(p.seed is None or -(2**63) <= p.seed < 2**64, "seed", "seed must fit in 64 bits")
    for name, count in (("logprobs", p.logprobs), ("prompt_logprobs", p.prompt_logprobs)):
        _require(
            count is None or 0 <= count <= MAX_LOGPROBS,
            name,
            f"{name} must be between 0 and {MAX_LOGPROBS}, got {count}",
        )
    _require(len(p.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} stop strings are allowed")
    _require(all(p.stop), "stop", "a stop string must not be empty")
    _require(all(p.bad_words), "bad_words", "a bad word must not be empty")
    _require(
        p.allowed_token_ids is None or len(p.allowed_token_ids) > 0,
        "allowed_token_ids",
        "allowed_token_ids must not be empty",
    )
    for bias in (p.logit_bias or {}).values():
        _number("logit_bias", bias, -100.0, 100.0)
    if vocab_size is not None:
        _token_ids("logit_bias", tuple(p.logit_bias or ()), vocab_size)
        _token_ids("allowed_token_ids", p.allowed_token_ids or (), vocab_size)
        _token_ids("stop_token_ids", p.stop_token_ids, vocab_size)


def _require(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise ParameterError(param, message)


def _number(param: str, value: float, low: float, high: float, *, above: bool = False) -> None:
    """`value` is finite and in [low, high], or in (low, high] with `above`."""
    inside = math.isfinite(value) and value <= high and (value > low if above else value >= low)
    if not inside:
        bounds = f"{'above' if above else 'at least'} {low:g}" + (
            f" and at most {high:g}" if math.isfinite(high) else ""
        )
        raise ParameterError(param, f"{param} must be a finite number {bounds}, got {value}")


def _token_ids(param: str, ids: tuple[int, ...], vocab_size: int) -> None:
    for token in ids:
        if not 0 <= token < vocab_size:
            raise ParameterError(param, f"{param}: token id {token} is outside the vocabulary (0 to {vocab_size - 1})")
