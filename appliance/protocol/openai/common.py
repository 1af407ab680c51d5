"""What completions and chat completions have in common, in requests and in responses."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

# What still fits the engine's wire; ranges that mean something are checked by `SamplingParams.validate`.
Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # refused when true


class ResumeChoice(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How far one choice has come, for another machine to go on from there with the same request."""

    index: Annotated[int, msgspec.Meta(ge=0)]
    generated_token_ids: list[int]
    text: str  # of these tokens, as far as it was shown
    seed: int
    position: int  # of the next token: tokens of the prompt and generated ones
    finish_reason: str | None = None  # it has ended, there is nothing to resume


class Resume(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The resume handle: what the error of an interrupted request has, and the same request takes elsewhere."""

    choices: list[ResumeChoice]


class GenerationRequest(msgspec.Struct, kw_only=True):
    """Fields shared by every route that generates text. `null` means the default, as clients send it."""

    model: str | None = None
    n: Int | None = None
    max_tokens: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Beyond OpenAI, as vLLM has them.
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: Int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    priority: Int | None = None
    cache_salt: str | None = None
    truncate_prompt_tokens: Int | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    resume: Resume | None = None  # ours: go on with what another machine began


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class Usage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(msgspec.Struct, kw_only=True):
    """One entry of vLLM's `prompt_logprobs`, which maps token ids to these."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ErrorDetail(msgspec.Struct, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    resume: Resume | UnsetType = UNSET


class ErrorBody(msgspec.Struct, kw_only=True):
    error: ErrorDetail
