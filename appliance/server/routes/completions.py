"""`POST /v1/completions`."""

from __future__ import annotations

from aiohttp import web

from appliance.config import Settings
from appliance.protocol.openai.completions import CompletionRequest
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import EngineReady
from appliance.server.body import json_response, read_request
from appliance.server.caller import CALLER
from appliance.server.completion_reply import CompletionReply, asks_for_prompt_only
from appliance.server.context import CONTEXT, ServerContext
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
from appliance.server.tokenizer_holder import NO_TOKENIZER
from appliance.text.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 16
_NAMES = ParamNames(prompt="prompt")


async def completions(request: web.Request) -> web.StreamResponse:
    context, record, caller = request.app[CONTEXT], request[RECORD], request[CALLER]
    body = await read_request(request, CompletionRequest)
    head = new_head("cmpl", context.model_name(body.model, caller))
    ready, tokenizer = context.ready_engine(), context.tokenizers.optional
    _check(body, context.settings)
    raw = _prompts(body.prompt)
    params = [_params(body, ready, 1)]  # validated before any work; again with the real lengths below
    n = params[0].n
    guess = sum(len(p) // CHARACTERS_PER_TOKEN if isinstance(p, str) else len(p) for p in raw)
    with context.admission.enter(n * len(raw), n * guess) as ticket:
        prompts = await _tokenized(raw, body, context, ready)
        ticket.resize(n * len(raw), n * sum(len(prompt.token_ids) for prompt in prompts))
        params = [_params(body, ready, len(prompt.token_ids)) for prompt in prompts]
        context.check_can_finish(sum(len(prompt.token_ids) for prompt in prompts), params[0])
        caller.hold_tokens(
            sum(len(prompt.token_ids) for prompt in prompts),
            sum(n * (one.max_tokens or 0) for one in params),
            asked=True,
        )
        record.note_prompt(prompts[0].text or "", context.settings.server.max_log_len)
        sequences = make_sequences(body, prompts, params, tokenizer, context.draw_seed, head.id, caller)
        sequences = resumed(sequences, body.resume, tokenizer, ready)
        generation = Generation(
            context.engine, context.metrics, record, ticket, sequences, prompt_only=asks_for_prompt_only(body)
        )
        reply = CompletionReply(head, body, tokenizer, prompts)
        if body.stream:
            return await stream(request, context, generation, body.stream_options, reply)
        results = await collect(generation, context, record)
    return json_response(reply.whole(generation, results))


def _check(body: CompletionRequest, settings: Settings) -> None:
    check_generation_fields(body, settings)
    check_resume(body)
    if settings.model.skip_tokenizer_init:
        for name in ("stop", "bad_words"):
            if getattr(body, name):
                raise bad_request(f"`{name}` needs a tokenizer. {NO_TOKENIZER}", name, "no_tokenizer")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise bad_request(
            "`best_of` other than `n` is not supported by this server; leave it out.",
            "best_of",
            "unsupported_parameter",
        )


def _prompts(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """The prompts of the request: one text or id list, or several, not mixed."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise bad_request("`prompt` must not be empty.", "prompt", "invalid_value")
    if all(isinstance(item, int) for item in prompt):
        return [prompt]  # type: ignore[list-item]
    if all(isinstance(item, str) for item in prompt) or all(isinstance(item, list) for item in prompt):
        return prompt  # type: ignore[return-value]
    raise bad_request(
        "`prompt` must be a string, a list of strings, a list of token ids, or a list of lists of them; not a mixture.",
        "prompt",
        "invalid_type",
    )


def _params(body: CompletionRequest, ready: EngineReady, prompt_tokens: int) -> SamplingParams:
    asked = body.max_tokens
    if asks_for_prompt_only(body):
        asked = 1  # the reply is the prompt alone; the engine always makes one token
    max_tokens = room_for_tokens(prompt_tokens, asked, DEFAULT_MAX_TOKENS, ready.max_model_len, _NAMES)
    prompt_logprobs = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        prompt_logprobs = max(prompt_logprobs or 0, body.logprobs)
    params = sampling_params(body, max_tokens=max_tokens, logprobs=body.logprobs, prompt_logprobs=prompt_logprobs)
    validate_sampling(params, ready.vocab_size, _NAMES)
    return params


async def _tokenized(
    raw: list[str | list[int]], body: CompletionRequest, context: ServerContext, ready: EngineReady
) -> list[Prompt]:
    special = body.add_special_tokens is not False
    texts = [prompt for prompt in raw if isinstance(prompt, str)]

    def encode(tokenizer: Tokenizer) -> list[list[int]]:
        return [tokenizer.encode(texts[0], special)] if len(texts) == 1 else tokenizer.encode_batch(texts, special)

    encoded = iter(await context.tokenizers.run(encode, sum(map(len, texts))) if texts else ())
    prompts = []
    for prompt in raw:
        text = prompt if isinstance(prompt, str) else None
        token_ids = next(encoded) if isinstance(prompt, str) else prompt
        token_ids = truncated(token_ids, body.truncate_prompt_tokens, ready.max_model_len)
        check_prompt(token_ids, ready, _NAMES)
        prompts.append(Prompt(token_ids, text))
    return prompts
