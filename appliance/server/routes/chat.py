"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from appliance.config import Settings
from appliance.protocol.openai.chat import ChatCompletionRequest
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import EngineReady
from appliance.server.body import json_response, read_request
from appliance.server.caller import CALLER
from appliance.server.chat_messages import template_messages
from appliance.server.chat_reply import ChatReply
from appliance.server.context import CONTEXT
from appliance.server.errors import bad_request
from appliance.server.generation import Generation
from appliance.server.intake import (
    CHARACTERS_PER_TOKEN,
    ParamNames,
    Prompt,
    check_generation_fields,
    check_prompt,
    make_sequences,
    room_for_tokens,
    truncated,
    validate_sampling,
)
from appliance.server.reply import collect, new_head, stream
from appliance.server.request_record import RECORD
from appliance.server.resume import check_resume, resumed
from appliance.server.sampling import sampling_params
from appliance.text.tokenizer import Tokenizer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    context, record, caller = request.app[CONTEXT], request[RECORD], request[CALLER]
    body = await read_request(request, ChatCompletionRequest)
    head = new_head("chatcmpl", context.model_name(body.model, caller))
    ready, tokenizer = context.ready_engine(), context.tokenizers.tokenizer
    _check(body, context.settings)
    messages = template_messages(body.messages)
    params = _params(body, ready, 1)  # validated before any work; again with the real length below
    characters = sum(len(message["content"]) for message in messages)
    with context.admission.enter(params.n, params.n * (characters // CHARACTERS_PER_TOKEN)) as ticket:
        prompt = Prompt(await context.tokenizers.run(_renderer(body, messages), characters), None)
        prompt.token_ids = truncated(prompt.token_ids, body.truncate_prompt_tokens, ready.max_model_len)
        check_prompt(prompt.token_ids, ready, _names(body))
        ticket.resize(params.n, params.n * len(prompt.token_ids))
        params = _params(body, ready, len(prompt.token_ids))
        context.check_can_finish(len(prompt.token_ids), params)
        caller.hold_tokens(len(prompt.token_ids), params.n * (params.max_tokens or 0), asked=_asked(body) is not None)
        record.note_prompt(messages[-1]["content"], context.settings.server.max_log_len)
        sequences = make_sequences(body, [prompt], [params], tokenizer, context.draw_seed, head.id, caller)
        sequences = resumed(sequences, body.resume, tokenizer, ready)
        generation = Generation(context.engine, context.metrics, record, ticket, sequences)
        reply = ChatReply(head, body, tokenizer, prompt, messages[-1], context.settings.server.response_role)
        if body.stream:
            return await stream(request, context, generation, body.stream_options, reply)
        results = await collect(generation, context, record)
    return json_response(reply.whole(generation, results))


def _check(body: ChatCompletionRequest, settings: Settings) -> None:
    check_generation_fields(body, settings)
    check_resume(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("`top_logprobs` needs `logprobs`: true.", "top_logprobs", "invalid_value")
    if body.continue_final_message and body.add_generation_prompt:
        message = "`continue_final_message` needs `add_generation_prompt`: false."
        raise bad_request(message, "continue_final_message", "invalid_value")


def _names(body: ChatCompletionRequest) -> ParamNames:
    max_tokens = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return ParamNames(prompt="messages", max_tokens=max_tokens, logprobs="top_logprobs")


def _asked(body: ChatCompletionRequest) -> int | None:
    """The longest reply that the client wants, if it says so."""
    return body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens


def _params(body: ChatCompletionRequest, ready: EngineReady, prompt_tokens: int) -> SamplingParams:
    max_tokens = room_for_tokens(prompt_tokens, _asked(body), None, ready.max_model_len, _names(body))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(body, max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=body.prompt_logprobs)
    validate_sampling(params, ready.vocab_size, _names(body))
    return params


def _renderer(body: ChatCompletionRequest, messages: list[dict[str, Any]]) -> Callable[[Tokenizer], list[int]]:
    """What turns the conversation into token ids, once there is a tokenizer to do it."""
    return lambda tokenizer: tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        chat_template=body.chat_template,
        kwargs=body.chat_template_kwargs,
    )
