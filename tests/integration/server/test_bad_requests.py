"""Every bad request gets the right 4xx with OpenAI's body, names the field, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import openai
import pytest

from tests.integration.server.harness import KEY, Server, eventually

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"prompt": "Hello", **fields}


# path, body, param, code
BAD_VALUES: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    (TEXT, {}, "prompt", "missing_required_parameter"),
    (CHAT, {}, "messages", "missing_required_parameter"),
    (CHAT, {"messages": []}, "messages", "invalid_value"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": 3, "content": "x"}]}, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_type"),
    (
        CHAT,
        {"messages": [*HELLO, {"role": "user", "content": "x", "mood": 1}]},
        "messages[1].mood",
        "unknown_parameter",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        CHAT,
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        "messages[0].role",
        "unsupported_parameter",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    (TEXT, {"prompt": ""}, "prompt", "invalid_value"),
    (TEXT, {"prompt": []}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [[]]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": ["a", 1]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1, "a"]}, "prompt", "invalid_type"),
    (TEXT, {"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    (TEXT, {"prompt": [-1]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [260]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": [10**30]}, "prompt", "invalid_value"),
    (TEXT, {"prompt": {"text": "a"}}, "prompt", "invalid_type"),
    (TEXT, {"prompt": None}, "prompt", "invalid_type"),
    (TEXT, text(max_tokens=0), "max_tokens", "invalid_value"),
    (TEXT, text(max_tokens=-5), "max_tokens", "invalid_value"),
    (TEXT, text(max_tokens="7"), "max_tokens", "invalid_type"),
    (TEXT, text(max_tokens=True), "max_tokens", "invalid_type"),
    (TEXT, text(max_tokens=10**30), "max_tokens", "invalid_type"),
    (TEXT, text(max_tokens=252), "max_tokens", "context_length_exceeded"),
    (CHAT, chat(max_tokens=255), "max_tokens", "context_length_exceeded"),
    (CHAT, chat(max_completion_tokens=255), "max_completion_tokens", "context_length_exceeded"),
    (CHAT, chat(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
    (TEXT, {"prompt": "x" * 256}, "prompt", "context_length_exceeded"),
    (CHAT, {"messages": [{"role": "user", "content": "x" * 300}]}, "messages", "context_length_exceeded"),
    (TEXT, text(temperature=-1), "temperature", "invalid_value"),
    (TEXT, text(temperature="hot"), "temperature", "invalid_type"),
    (TEXT, text(top_p=0), "top_p", "invalid_value"),
    (TEXT, text(top_p=1.5), "top_p", "invalid_value"),
    (TEXT, text(top_k=-2), "top_k", "invalid_value"),
    (TEXT, text(min_p=2), "min_p", "invalid_value"),
    (TEXT, text(n=0), "n", "invalid_value"),
    (TEXT, text(n=1000), "n", "invalid_value"),
    (TEXT, text(n=2, best_of=3), "best_of", "unsupported_parameter"),
    (TEXT, text(logprobs=-1), "logprobs", "invalid_value"),
    (TEXT, text(logprobs=1000), "logprobs", "invalid_value"),
    (TEXT, text(logprobs=True), "logprobs", "invalid_type"),
    (CHAT, chat(logprobs=5), "logprobs", "invalid_type"),
    (CHAT, chat(top_logprobs=5), "top_logprobs", "invalid_value"),
    (CHAT, chat(logprobs=True, top_logprobs=99), "top_logprobs", "invalid_value"),
    (TEXT, text(prompt_logprobs=2, stream=True), "prompt_logprobs", "invalid_value"),
    (TEXT, text(presence_penalty=3), "presence_penalty", "invalid_value"),
    (TEXT, text(frequency_penalty=-3), "frequency_penalty", "invalid_value"),
    (TEXT, text(repetition_penalty=0), "repetition_penalty", "invalid_value"),
    (TEXT, text(logit_bias={"a": 1}), "logit_bias", "invalid_type"),
    (TEXT, text(logit_bias={"5": 500}), "logit_bias", "invalid_value"),
    (TEXT, text(logit_bias={"5000": 5}), "logit_bias", "invalid_value"),
    (TEXT, text(stop=[""]), "stop", "invalid_value"),
    (TEXT, text(stop=["x"] * 50), "stop", "invalid_value"),
    (TEXT, text(stop=5), "stop", "invalid_type"),
    (TEXT, text(stop_token_ids=[999]), "stop_token_ids", "invalid_value"),
    (TEXT, text(allowed_token_ids=[]), "allowed_token_ids", "invalid_value"),
    (TEXT, text(min_tokens=-1), "min_tokens", "invalid_value"),
    (TEXT, text(min_tokens=5, max_tokens=2), "min_tokens", "invalid_value"),
    (TEXT, text(seed=2**70), "seed", "invalid_value"),
    (TEXT, text(seed=1.5), "seed", "invalid_type"),
    (TEXT, text(bad_words=[""]), "bad_words", "invalid_value"),
    (TEXT, text(cache_salt=""), "cache_salt", "invalid_value"),
    (TEXT, text(priority=1), "priority", "unsupported_parameter"),
    (TEXT, text(truncate_prompt_tokens=0), "truncate_prompt_tokens", "invalid_value"),
    (TEXT, text(stream="yes"), "stream", "invalid_type"),
    (TEXT, text(stream_options={"include_usage": True}), "stream_options", "invalid_value"),
    (TEXT, text(stream=True, stream_options={"x": 1}), "stream_options.x", "unknown_parameter"),
    (TEXT, text(model=5), "model", "invalid_type"),
    (CHAT, chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message", "invalid_value"),
    (CHAT, chat(chat_template="{% if %}"), "messages", "chat_template_error"),
    (CHAT, chat(chat_template="{{ raise_exception('no') }}"), "messages", "chat_template_error"),
    (CHAT, chat(chat_template_kwargs={"tokenize": True}), "messages", "chat_template_error"),
    (TEXT, text(temperatur=1), "temperatur", "unknown_parameter"),
    (CHAT, chat(prompt="x"), "prompt", "unknown_parameter"),
    ("/tokenize", {}, "prompt", "invalid_value"),
    ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt", "invalid_value"),
    ("/detokenize", {"tokens": [-1]}, "tokens[0]", "invalid_value"),
    ("/detokenize", {"tokens": [5, 10**20]}, "tokens[1]", "invalid_value"),
    ("/detokenize", {"tokens": "x"}, "tokens", "invalid_type"),
]

UNSUPPORTED: list[tuple[str, Any]] = [
    ("tools", [{"type": "function"}]),
    ("tool_choice", "required"),
    ("functions", [{}]),
    ("response_format", {"type": "json_object"}),
    ("structured_outputs", {"regex": "a"}),
    ("guided_json", {}),
    ("guided_regex", "a"),
    ("use_beam_search", True),
    ("store", True),
    ("audio", {"voice": "x"}),
    ("modalities", ["text", "audio"]),
    ("kv_transfer_params", {}),
    ("reasoning_effort", "high"),
    ("prediction", {"type": "content", "content": "x"}),
    ("web_search_options", {}),
]

NOT_JSON: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("cut off", b'{"prompt": "a'),
    ("trailing comma", b'{"prompt": "a",}'),
    ("trailing text", b'{"prompt": "a"} x'),
    ("an array", b"[]"),
    ("a string", b'"a"'),
    ("null", b"null"),
    ("NaN", b'{"prompt": "a", "temperature": NaN}'),
    ("Infinity", b'{"prompt": "a", "temperature": Infinity}'),
    ("a number out of range", b'{"prompt": "a", "temperature": 1e999}'),
    ("a lone surrogate", b'{"prompt": "\\ud800"}'),
    ("bytes that are not UTF-8", b'{"prompt": "\xff\xfe"}'),
    ("a name that is not UTF-8", b'{"\xff": 1, "prompt": "a"}'),
    ("an unsupported field that is not UTF-8", b'{"prompt": "a", "tools": "\xff"}'),
    ("UTF-16", '{"prompt": "a"}'.encode("utf-16")),
    ("deep nesting in an unknown field", b'{"prompt": "a", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ("deep nesting in a known field", b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ("deep nesting in free fields", b'{"prompt": "a", "tools": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
]


def is_error(body: Any) -> bool:
    return (
        set(body) == {"error"}
        and set(body["error"]) == {"message", "type", "param", "code"}
        and body["error"]["message"]
    )


async def test_every_bad_value_is_a_400_that_names_the_field(server: Server) -> None:
    for path, body, param, code in BAD_VALUES:
        status, reply = await server.post(path, body)
        assert is_error(reply), (body, reply)
        assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, param, code), (body, reply)
    await server.nothing_is_left()
    assert server.engine.seen == []


async def test_every_field_that_cannot_be_served_is_a_400_that_says_so(server: Server) -> None:
    for name, value in UNSUPPORTED:
        status, reply = await server.post(CHAT, chat(**{name: value}))
        assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, name, "unsupported_parameter"), reply
        assert name in reply["error"]["message"]
        assert (await server.post(CHAT, chat(max_tokens=1, **{name: None})))[0] == 200
    assert (await server.post(TEXT, text(suffix="x")))[1]["error"]["param"] == "suffix"


@pytest.mark.parametrize(("what", "body"), NOT_JSON, ids=[what for what, _ in NOT_JSON])
async def test_a_body_that_is_no_json_object_is_a_400(server: Server, what: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    async with server.http.post(server.url + TEXT, data=body, headers=headers) as response:
        assert response.status == 400, await response.text()
        assert is_error(await response.json())
    await server.nothing_is_left()
    assert server.engine.seen == []


LONE_SURROGATES = [
    (rb'{"prompt": "\ud800"}', r"\ud800"),
    (rb'{"prompt": "a \uDC00 b"}', r"\uDC00"),
    (rb'{"prompt": "\ud83d\ude00 \ud83d\u0041"}', r"\ud83d"),
    (rb'{"prompt": "a", "tools": "\udfff"}', r"\udfff"),
]


@pytest.mark.parametrize(("body", "escape"), LONE_SURROGATES)
async def test_a_lone_surrogate_is_called_one(server: Server, body: bytes, escape: str) -> None:
    async with server.http.post(server.url + TEXT, data=body, headers={"Content-Type": "application/json"}) as response:
        error = (await response.json())["error"]
    assert (response.status, error["code"]) == (400, "invalid_json")
    assert f"`{escape}`, a lone surrogate" in error["message"]


async def test_what_only_looks_like_a_lone_surrogate_is_not_called_one(server: Server) -> None:
    body = rb'{"prompt": "\ud83d\ude00 \\ud800", '
    async with server.http.post(server.url + TEXT, data=body, headers={"Content-Type": "application/json"}) as response:
        assert "surrogate" not in (await response.json())["error"]["message"]


async def test_an_unknown_field_is_met_with_the_nearest_name(server: Server) -> None:
    _, reply = await server.post(TEXT, text(max_token=3))
    assert reply["error"]["message"] == "Unknown field `max_token`. Did you mean `max_tokens`?"


async def test_a_context_error_has_the_numbers(server: Server) -> None:
    _, reply = await server.post(TEXT, text(max_tokens=252))
    for number in ("256", "5", "252", "257", "251"):
        assert number in reply["error"]["message"]


async def test_an_unknown_model_is_a_404(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await server.openai.completions.create(model="gpt-5", prompt="a")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_wrong_content_type_is_a_415(server: Server, kind: str) -> None:
    async with server.http.post(server.url + TEXT, data=b'{"prompt": "a"}', headers={"Content-Type": kind}) as response:
        assert response.status == 415
        assert is_error(await response.json())


async def test_a_body_above_the_limit_is_a_413_also_when_it_was_compressed(start: Any) -> None:
    server = await start(max_request_bytes=2048)
    status, reply = await server.post(TEXT, {"prompt": "x" * 4096})
    assert (status, reply["error"]["code"]) == (413, "request_too_large")
    assert reply["error"]["message"] == "The request body is larger than the 2048 bytes that max-request-bytes allows."
    packed = gzip.compress(json.dumps({"prompt": "x" * 1_000_000}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with server.http.post(server.url + TEXT, data=packed, headers=headers) as response:
        assert response.status == 413
        assert is_error(await response.json())


async def test_a_body_that_does_not_unpack_is_a_400(server: Server) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with server.http.post(server.url + TEXT, data=b"not gzip", headers=headers) as response:
        assert response.status == 400


async def test_unknown_routes_and_methods_have_openai_bodies(server: Server) -> None:
    status, body = await server.get("/v1/nothing")
    assert status == 404 and is_error(json.loads(body))
    async with server.http.get(server.url + CHAT) as response:
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        assert is_error(await response.json())
    async with server.http.delete(server.url + "/v1/models") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")


async def test_a_request_that_the_engine_cannot_compute_fails_alone(server: Server) -> None:
    server.engine.failing_first_tokens = {ord("F")}
    bad, good = await asyncio.gather(
        server.post(TEXT, {"prompt": "Fail", "max_tokens": 5}), server.post(TEXT, {"prompt": "Hello", "max_tokens": 5})
    )
    assert bad[0] == 500 and is_error(bad[1])
    assert bad[1]["error"]["message"] == "This request cannot be computed"
    assert good[0] == 200


async def test_a_request_that_failed_is_not_repeated_by_the_client(server: Server) -> None:
    server.engine.failing_first_tokens = {ord("F")}
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=3) as client:
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="null", prompt="Fail")
    assert len(server.engine.seen) == 1


async def test_one_failing_sequence_of_several_ends_them_all(server: Server) -> None:
    server.engine.failing_first_tokens = {ord("F")}
    server.engine.step_seconds = 0.005
    status, _ = await server.post(TEXT, {"prompt": ["Hello", "Fail"], "max_tokens": 200})
    assert status == 500
    await server.nothing_is_left()


async def test_an_error_after_the_first_byte_is_an_event_and_the_end(server: Server) -> None:
    server.engine.failing_first_tokens = {ord("F")}
    async with server.http.post(server.url + TEXT, json={"prompt": "Fail", "stream": True}) as response:
        assert response.status == 200
        events = (await response.text()).strip().split("\n\n")
    assert is_error(json.loads(events[-1].removeprefix("data: ")))
    assert "[DONE]" not in events
    await server.nothing_is_left()


async def test_the_engine_dies_and_every_request_gets_an_error_and_a_new_engine_serves(server: Server) -> None:
    server.engine.step_seconds = 0.01
    body = {"prompt": "Hello", "max_tokens": 200}
    waiting = asyncio.create_task(server.post(TEXT, body))
    streaming = await server.openai.completions.create(model="null", stream=True, **body)  # type: ignore[call-overload]
    await eventually(lambda: len(server.engine.running) == 2)
    await server.engine.stop()
    status, reply = await waiting
    assert (status, reply["error"]["code"]) == (503, "engine_unavailable")
    with pytest.raises(openai.APIError):
        async for _ in streaming:
            pass
    assert (await server.get("/readyz"))[0] == 503
    server.engine.running.clear()
    async with server.http.post(server.url + TEXT, json=body) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
    await server.engine.start()
    await eventually(lambda: server.context.not_ready_reason() is None)
    assert (await server.post(TEXT, {"prompt": "Hello", "max_tokens": 3}))[0] == 200


async def test_a_request_that_takes_too_long_ends_with_code_timeout(start: Any) -> None:
    server = await start(request_timeout=0.05)
    server.engine.hold = True
    status, reply = await server.post(TEXT, {"prompt": "Hello"})
    assert (status, reply["error"]["code"]) == (504, "timeout")
    async with server.http.post(server.url + TEXT, json={"prompt": "Hello", "stream": True}) as response:
        last = (await response.text()).strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
    await server.nothing_is_left()
    assert len(server.engine.aborted) == 2


async def test_the_client_sees_its_own_error_classes(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await server.openai.chat.completions.create(model="null", messages=HELLO, temperature=-1)
    assert caught.value.param == "temperature"
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="null", input="a")
