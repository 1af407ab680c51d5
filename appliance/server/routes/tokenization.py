"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from aiohttp import web

from appliance.protocol.openai.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from appliance.server.body import json_response, read_request
from appliance.server.caller import CALLER
from appliance.server.chat_messages import template_messages
from appliance.server.context import CONTEXT
from appliance.server.errors import bad_request
from appliance.text.tokenizer import Tokenizer


async def tokenize(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    body = await read_request(request, TokenizeRequest)
    context.model_name(body.model, request[CALLER])
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("Send either `prompt` or `messages`.", "prompt", "invalid_value")
    if body.prompt is not None:
        characters = len(body.prompt)
    else:
        characters = sum(len(message["content"]) for message in template_messages(body.messages or []))
    tokens = await context.tokenizers.run(lambda tokenizer: _token_ids(tokenizer, body), characters)
    ready = context.engine.status.ready
    tokenizer = context.tokenizers.tokenizer
    strings = [tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    max_model_len = None if ready is None else ready.max_model_len
    return json_response(
        TokenizeResponse(count=len(tokens), max_model_len=max_model_len, tokens=tokens, token_strs=strings)
    )


async def detokenize(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    body = await read_request(request, DetokenizeRequest)
    context.model_name(body.model, request[CALLER])
    limit = context.tokenizers.tokenizer.vocab_size
    for i, token in enumerate(body.tokens):
        if not 0 <= token < limit:
            raise bad_request(
                f"`tokens[{i}]`: {token} is outside the vocabulary (0 to {limit - 1}).", f"tokens[{i}]", "invalid_value"
            )
    text = await context.tokenizers.run(
        lambda tokenizer: tokenizer.decode(body.tokens, skip_special_tokens=False), len(body.tokens)
    )
    return json_response(DetokenizeResponse(prompt=text))


def _token_ids(tokenizer: Tokenizer, body: TokenizeRequest) -> list[int]:
    if body.prompt is not None:
        return tokenizer.encode(body.prompt, body.add_special_tokens is not False)
    return tokenizer.apply_chat_template(
        template_messages(body.messages or []),
        add_generation_prompt=body.add_generation_prompt is not False and not body.continue_final_message,
        continue_final_message=bool(body.continue_final_message),
        chat_template=body.chat_template,
        kwargs=body.chat_template_kwargs,
    )
