"""Completions and chat with the OpenAI client as it comes, and the shapes that it does not look at."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.text.tokenizer import Tokenizer
from tests.integration.server.harness import KEY, Server, running_server

TEXT = "The quick brown fox jumps over the lazy dog €5. "
HELLO = [{"role": "user", "content": "Hello"}]


async def test_a_completion_has_text_usage_and_finish_reason(server: Server) -> None:
    reply = await server.openai.completions.create(model="null", prompt="Hello", max_tokens=9)
    assert reply.id.startswith("cmpl-")
    assert reply.object == "text_completion"
    assert reply.model == "null"
    assert reply.choices[0].text == "The quick"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 9, 14)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


async def test_a_completion_makes_sixteen_tokens_by_default(server: Server) -> None:
    reply = await server.openai.completions.create(model="null", prompt="Hello")
    assert reply.choices[0].text == TEXT[:16]


async def test_a_streamed_completion_is_the_same_text(server: Server) -> None:
    chunks = [
        chunk
        async for chunk in await server.openai.completions.create(
            model="null", prompt="Hello", max_tokens=49, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == TEXT[:47]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 49
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_chat_reply_uses_the_template_and_the_rest_of_the_context(server: Server) -> None:
    reply = await server.openai.chat.completions.create(model="null", messages=HELLO)
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    request = server.engine.seen[0]
    assert server.context.tokenizers.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False) == prompt
    assert request.sampling.max_tokens == 256 - len(request.prompt_token_ids)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content is not None
    assert reply.choices[0].message.content.startswith(TEXT)
    assert reply.usage is not None and reply.usage.total_tokens == 256


async def test_a_reply_that_ends_by_itself_has_finish_reason_stop_and_no_end_token(server: Server) -> None:
    server.engine.reply_tokens = 9
    reply = await server.openai.chat.completions.create(model="null", messages=HELLO)
    assert reply.choices[0].message.content == "The quick"
    assert reply.choices[0].finish_reason == "stop"


async def test_a_streamed_chat_begins_with_the_role(server: Server) -> None:
    chunks = [
        chunk
        async for chunk in await server.openai.chat.completions.create(
            model="null", messages=HELLO, max_completion_tokens=9, stream=True
        )
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "The quick"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks[:-1])


async def test_the_synchronous_client_works(server: Server) -> None:
    def use() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0) as client:
            whole = client.chat.completions.create(model="null", messages=HELLO, max_tokens=9)  # type: ignore[arg-type]
            stream = client.chat.completions.create(model="null", messages=HELLO, max_tokens=9, stream=True)  # type: ignore[arg-type]
            return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    assert await asyncio.to_thread(use) == ("The quick", "The quick")


async def test_the_streaming_helper_of_the_client_works(server: Server) -> None:
    server.engine.reply_tokens = 9
    async with server.openai.chat.completions.stream(model="null", messages=HELLO) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "The quick"


async def test_the_models_are_listed_and_can_be_fetched(start: Any) -> None:
    server = await start(model="org/null", served_model_name=("org/null", "other"))
    listed = await server.openai.models.list()
    assert [model.id for model in listed.data] == ["org/null", "other"]
    assert (await server.openai.models.retrieve("org/null")).id == "org/null"
    with pytest.raises(openai.NotFoundError):
        await server.openai.models.retrieve("missing")


async def test_an_assistant_message_can_be_sent_back_as_it_came(server: Server) -> None:
    reply = await server.openai.chat.completions.create(model="null", messages=HELLO, max_tokens=9)
    messages: list[Any] = [
        *HELLO,
        reply.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "More"}]},
    ]
    again = await server.openai.chat.completions.create(model="null", messages=messages, max_tokens=9)
    assert again.choices[0].message.content == "The quick"


async def test_the_setting_seed_gives_requests_without_one_the_same_seeds_at_each_start(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    async def seeds(name: str, seed: int | None) -> list[int | None]:
        async with running_server(tmp_path / name, tokenizer, seed=seed) as server:
            for n in (1, 2):
                await server.openai.completions.create(model="null", prompt="One", max_tokens=1, n=n)
                await server.openai.chat.completions.create(model="null", messages=HELLO, max_tokens=1)
            return [request.sampling.seed for request in server.engine.seen]

    first, second = await seeds("a", 5), await seeds("b", 5)
    assert first == second
    assert len(set(first)) == 5
    assert set(first).isdisjoint(await seeds("c", None))


async def test_n_sequences_of_several_prompts_come_in_order_with_consecutive_seeds(server: Server) -> None:
    reply = await server.openai.completions.create(model="null", prompt=["One", "Three"], n=2, max_tokens=4, seed=7)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [request.sampling.seed for request in server.engine.seen] == [7, 8, 7, 8]
    assert [len(request.prompt_token_ids) for request in server.engine.seen] == [3, 3, 5, 5]
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (8, 16)
    await server.nothing_is_left()


async def test_n_sequences_are_streamed_together(server: Server) -> None:
    texts = {0: "", 1: "", 2: ""}
    async for chunk in await server.openai.chat.completions.create(
        model="null", messages=HELLO, n=3, max_tokens=9, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: "The quick", 1: "The quick", 2: "The quick"}


@pytest.mark.parametrize("prompt", [[72, 105], [[72, 105]], "Hi", ["Hi"]])
async def test_a_prompt_may_be_text_or_token_ids(server: Server, prompt: Any) -> None:
    await server.openai.completions.create(model="null", prompt=prompt, max_tokens=1)
    assert server.engine.seen[0].prompt_token_ids == [72, 105]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_over_several_tokens_ends_the_text_before_it_and_aborts(
    server: Server, stream: bool
) -> None:
    server.engine.step_seconds = 0.005
    body = {"prompt": "Hello", "max_tokens": 200, "stop": ["brown", "zzz"]}
    if stream:
        text, last = "", None
        async for chunk in await server.openai.completions.create(model="null", **body, stream=True):
            text += chunk.choices[0].text
            last = chunk.choices[0]
    else:
        reply = await server.openai.completions.create(model="null", **body)
        last = reply.choices[0]
        text = last.text
        assert reply.usage is not None and reply.usage.completion_tokens == len("The quick brown")
    assert text == "The quick "
    assert last is not None and last.finish_reason == "stop"
    assert last.model_extra == {"stop_reason": "brown"} or last.model_extra["stop_reason"] == "brown"
    await server.nothing_is_left()
    assert len(server.engine.aborted) == 1


async def test_half_a_character_is_never_sent(server: Server) -> None:
    server.engine.reply = "€".encode()
    texts = [
        chunk.choices[0].text
        async for chunk in await server.openai.completions.create(model="null", prompt="a", max_tokens=6, stream=True)
    ]
    assert "".join(texts) == "€€"
    assert all("\ufffd" not in text for text in texts)


async def test_every_extra_reaches_the_engine(start: Any) -> None:
    server = await start(scheduling_policy="priority")
    extras = {
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop_token_ids": [9],
        "ignore_eos": True,
        "allowed_token_ids": [1, 2],
        "priority": -3,
        "cache_salt": "tenant",
        "bad_words": ["x"],
        "logit_bias": {"65": 5},
        "skip_special_tokens": False,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "temperature": 0,
        "top_p": 0.5,
    }
    status, _ = await server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3, **extras})
    assert status == 200
    request = server.engine.seen[0]
    sampling = request.sampling
    assert (request.priority, request.cache_salt) == (-3, "tenant")
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.min_tokens) == (5, 0.1, 1.1, 2)
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.allowed_token_ids) == ((9,), True, (1, 2))
    assert (sampling.logit_bias, sampling.temperature, sampling.top_p) == ({65: 5.0}, 0.0, 0.5)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -0.5)
    assert sampling.bad_words_token_ids == ((120,), (32, 120))
    assert sampling.skip_special_tokens is False


async def test_null_means_the_default_and_harmless_fields_are_accepted(server: Server) -> None:
    fields = dict.fromkeys(["temperature", "stop", "n", "logprobs", "max_tokens", "tools", "seed", "stream"])
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "store": False,
    }
    neutral = {"response_format": {"type": "text"}, "tool_choice": "auto", "tools": []}
    status, reply = await server.post("/v1/chat/completions", {"messages": HELLO, **fields, **harmless, **neutral})
    assert status == 200, reply


async def test_truncate_prompt_tokens_keeps_the_end(server: Server) -> None:
    await server.post("/v1/completions", {"prompt": "abcdef", "truncate_prompt_tokens": 2})
    assert server.engine.seen[0].prompt_token_ids == [101, 102]


async def test_the_final_message_can_be_continued_and_echoed(server: Server) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well, "}]
    body = {"messages": messages, "continue_final_message": True, "echo": True, "max_tokens": 3}
    _, reply = await server.post("/v1/chat/completions", body)
    assert reply["choices"][0]["message"]["content"] == "Well, The"
    prompt = server.context.tokenizers.tokenizer.decode(server.engine.seen[0].prompt_token_ids)
    assert prompt.endswith(("Well,", "Well, "))


async def test_token_ids_are_returned_when_asked_for(server: Server) -> None:
    _, reply = await server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 3, "return_token_ids": True})
    assert reply["choices"][0]["token_ids"] == [84, 104, 101]
    assert reply["choices"][0]["prompt_token_ids"] == [72, 105]
    body = {"messages": HELLO, "max_tokens": 3, "return_token_ids": True}
    _, reply = await server.post("/v1/chat/completions", body)
    assert reply["choices"][0]["token_ids"] == [84, 104, 101]
    assert reply["prompt_token_ids"] == server.engine.seen[1].prompt_token_ids


async def test_tokenize_and_detokenize_are_inverse(server: Server) -> None:
    status, reply = await server.post("/tokenize", {"prompt": "Hi €", "return_token_strs": True})
    assert (status, reply["count"], reply["max_model_len"]) == (200, 6, 256)
    assert reply["token_strs"][:3] == ["H", "i", " "]
    status, back = await server.post("/detokenize", {"tokens": reply["tokens"]})
    assert (status, back) == (200, {"prompt": "Hi €"})
    _, chat = await server.post("/tokenize", {"messages": HELLO})
    assert chat["tokens"][0] == 256


async def test_without_a_tokenizer_token_ids_go_in_and_come_out(start: Any) -> None:
    server = await start(skip_tokenizer_init=True)
    body = {"prompt": [72, 105], "max_tokens": 2, "logprobs": 0}
    status, reply = await server.post("/v1/completions", body)
    choice = reply["choices"][0]
    assert (status, choice["text"], choice["token_ids"]) == (200, "", [84, 104])
    assert choice["logprobs"]["tokens"] == ["token_id:84", "token_id:104"]
    chunks = [
        chunk
        async for chunk in await server.openai.completions.create(model="null", prompt=[72], max_tokens=3, stream=True)
    ]
    assert [token for chunk in chunks for token in chunk.choices[0].model_extra["token_ids"]] == [84, 104, 101]
    for path, body, param in [
        ("/v1/completions", {"prompt": "Hi"}, None),
        ("/v1/completions", {"prompt": [72], "stop": "a"}, "stop"),
        ("/v1/completions", {"prompt": [72], "bad_words": ["a"]}, "bad_words"),
        ("/v1/chat/completions", {"messages": HELLO}, None),
        ("/tokenize", {"prompt": "Hi"}, None),
    ]:
        status, reply = await server.post(path, body)
        assert (status, reply["error"]["code"], reply["error"]["param"]) == (400, "no_tokenizer", param), path
    await server.nothing_is_left()
