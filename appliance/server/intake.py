"""From a decoded request to the sequences that the engine is asked for. Every check happens here, before the engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from appliance.config import Settings
from appliance.protocol.fan_out import fan_out
from appliance.protocol.openai.common import GenerationRequest
from appliance.protocol.sampling_params import ParameterError, SamplingParams
from appliance.protocol.wire import AddRequest, EngineReady
from appliance.server.caller import Caller
from appliance.server.errors import bad_request
from appliance.server.generation import Sequence
from appliance.text.sequence import SequenceStream
from appliance.text.tokenizer import Tokenizer

CHARACTERS_PER_TOKEN = 4  # of English text; for the place in the queue until a prompt is tokenized


@dataclass(slots=True)
class Prompt:
    """One prompt, tokenized. `text` is None when the client sent token ids."""

    token_ids: list[int]
    text: str | None


@dataclass(slots=True)
class ParamNames:
    """How this route calls what the checks are about."""

    prompt: str
    max_tokens: str = "max_tokens"
    logprobs: str = "logprobs"


def check_generation_fields(request: GenerationRequest, settings: Settings) -> None:
    """What concerns every route and needs no token. Raises a 400."""
    options = request.stream_options
    if options is not None:
        if not request.stream:
            raise bad_request(
                "`stream_options` is allowed only with `stream`: true.", "stream_options", "invalid_value"
            )
        if options.include_obfuscation:
            message = "`stream_options.include_obfuscation` is not supported by this server; leave it out."
            raise bad_request(message, "stream_options.include_obfuscation", "unsupported_parameter")
    if request.prompt_logprobs is not None and request.stream:
        raise bad_request("`prompt_logprobs` is not available with `stream`: true.", "prompt_logprobs", "invalid_value")
    if request.priority and settings.scheduling.scheduling_policy != "priority":
        message = "`priority` has no effect on this server: scheduling-policy is not `priority`. Leave it out."
        raise bad_request(message, "priority", "unsupported_parameter")
    if request.cache_salt == "":
        raise bad_request(
            "`cache_salt` must not be empty; leave it out to share the cache.", "cache_salt", "invalid_value"
        )


def validate_sampling(params: SamplingParams, vocab_size: int, names: ParamNames) -> None:
    """`params.validate`, with fields named as the client knows them."""
    try:
        params.validate(vocab_size)
    except ParameterError as error:
        name = {"max_tokens": names.max_tokens, "logprobs": names.logprobs}.get(error.param, error.param)
        message = str(error).replace(error.param, name, 1) if name != error.param else str(error)
        raise ParameterError(name, message) from None


def truncated(token_ids: list[int], keep: int | None, max_model_len: int) -> list[int]:
    """The last `keep` ids (field `truncate_prompt_tokens`); -1 keeps what leaves room for one token."""
    if keep is None:
        return token_ids
    if keep == -1:
        keep = max_model_len - 1
    if keep < 1:
        message = f"truncate_prompt_tokens must be -1 or at least 1, got {keep}"
        raise bad_request(message, "truncate_prompt_tokens", "invalid_value")
    return token_ids[-keep:]


def check_prompt(token_ids: list[int], ready: EngineReady, names: ParamNames) -> None:
    """Raises a 400 for a prompt that is empty or has ids that the model does not know."""
    if not token_ids:
        raise bad_request(f"`{names.prompt}` must have at least one token.", names.prompt, "invalid_value")
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= ready.vocab_size:
        wrong = low if low < 0 else high
        message = f"`{names.prompt}`: token id {wrong} is outside the vocabulary (0 to {ready.vocab_size - 1})."
        raise bad_request(message, names.prompt, "invalid_value")


def room_for_tokens(prompt_tokens: int, asked: int | None, default: int | None, limit: int, names: ParamNames) -> int:
    """The number of tokens to generate: `asked`, else `default` or the rest of the context, whichever is less.

    Raises a 400 when the context (`limit` tokens, prompt and reply together) is too small.
    """
    room = limit - prompt_tokens
    if room < 1:
        message = (
            f"This model's context is {limit} tokens, but the prompt has {prompt_tokens} and needs room for at least "
            f"one more. Shorten `{names.prompt}`."
        )
        raise bad_request(message, names.prompt, "context_length_exceeded")
    if asked is not None and asked > room:
        message = (
            f"This model's context is {limit} tokens, but the prompt has {prompt_tokens} and `{names.max_tokens}` asks "
            f"for {asked}, {prompt_tokens + asked} in all. Shorten `{names.prompt}`, or ask for at most {room}."
        )
        raise bad_request(message, names.max_tokens, "context_length_exceeded")
    if asked is not None:
        return asked
    return room if default is None else min(default, room)


def make_sequences(
    request: GenerationRequest,
    prompts: list[Prompt],
    params: list[SamplingParams],
    tokenizer: Tokenizer | None,
    draw_seed: Callable[[], int],
    reply_id: str,
    caller: Caller,
) -> list[Sequence]:
    """`n` sequences of each prompt, in the order of the choices of the reply. `params` has one entry a prompt."""
    arrival = time.time()
    bad_words = tokenizer.bad_words_ids(request.bad_words) if tokenizer and request.bad_words else ()
    sequences: list[Sequence] = []
    for prompt_index, (prompt, prompt_params) in enumerate(zip(prompts, params, strict=True)):
        for sampling in fan_out(prompt_params, draw_seed):
            index = len(sequences)
            add = AddRequest(
                request_id=f"{reply_id}-{index}",
                prompt_token_ids=prompt.token_ids,
                sampling=msgspec.structs.replace(sampling, bad_words_token_ids=bad_words),
                arrival_time=arrival,
                priority=caller.priority(request.priority),
                key_id=caller.label,
                cache_salt=caller.cache_salt(request.cache_salt),
            )
            stream = SequenceStream(tokenizer, prompt.token_ids, sampling)
            sequences.append(Sequence(index=index, prompt_index=prompt_index, request=add, stream=stream))
    return sequences
