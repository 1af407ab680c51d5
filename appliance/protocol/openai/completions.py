"""`/v1/completions`."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from appliance.protocol.openai.common import GenerationRequest, Int, PromptLogprobs, Usage
from appliance.protocol.wire import FinishReason


class CompletionRequest(GenerationRequest, kw_only=True):
    # A text, texts, token ids, or lists of token ids; that the list is of one kind is checked after decoding.
    prompt: str | list[str | int | list[int]]
    logprobs: Int | None = None
    best_of: Int | None = None  # only as large as n


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Four lists in parallel, one entry a token; the first token of an echoed prompt has no probability."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
