"""From the fields of a request to `SamplingParams`."""

from __future__ import annotations

from typing import TypeVar

from appliance.protocol.openai.common import GenerationRequest
from appliance.protocol.sampling_params import SamplingParams

T = TypeVar("T")


def sampling_params(
    request: GenerationRequest, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """The parameters of `request`, not yet validated. Defaults are those of `SamplingParams`, whatever the model."""
    stop = request.stop if request.stop is not None else ()
    allowed = request.allowed_token_ids
    return SamplingParams(
        n=_or(request.n, 1),
        max_tokens=max_tokens,
        min_tokens=_or(request.min_tokens, 0),
        temperature=_or(request.temperature, 1.0),
        top_k=_or(request.top_k, 0),
        top_p=_or(request.top_p, 1.0),
        min_p=_or(request.min_p, 0.0),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, 1.0),
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=_or(request.ignore_eos, False),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        logit_bias=request.logit_bias or None,
        allowed_token_ids=None if allowed is None else tuple(allowed),
        bad_words=tuple(request.bad_words or ()),
        skip_special_tokens=_or(request.skip_special_tokens, True),
        spaces_between_special_tokens=_or(request.spaces_between_special_tokens, True),
        include_stop_str_in_output=_or(request.include_stop_str_in_output, False),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
