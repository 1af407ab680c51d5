"""Log probabilities in the shapes of OpenAI and vLLM."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.integration.server.harness import Server

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


async def test_completion_logprobs_have_four_parallel_lists(server: Server) -> None:
    reply = await server.openai.completions.create(model="null", prompt="Hi", max_tokens=3, logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["T", "h", "e"]
    assert logprobs.token_logprobs == [-0.5, -0.5, -0.5]
    assert logprobs.text_offset == [0, 1, 2]
    assert logprobs.top_logprobs == [{"T": -0.5, "U": -1.5}, {"h": -0.5, "i": -1.5}, {"e": -0.5, "f": -1.5}]


async def test_offsets_go_on_from_chunk_to_chunk(server: Server) -> None:
    offsets: list[int] = []
    async for chunk in await server.openai.completions.create(
        model="null", prompt="Hi", max_tokens=20, logprobs=0, stream=True
    ):
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None and logprobs.text_offset is not None
        offsets += logprobs.text_offset
    assert offsets == list(range(20))


async def test_parts_of_a_character_are_shown_as_bytes_and_count_once(server: Server) -> None:
    server.engine.reply = "€x".encode()
    reply = await server.openai.completions.create(model="null", prompt="Hi", max_tokens=4, logprobs=0)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "x"]
    assert logprobs.text_offset is not None
    assert logprobs.text_offset[3] == 1
    assert reply.choices[0].text == "€x"


async def test_chat_logprobs_have_bytes_and_alternatives(server: Server) -> None:
    reply = await server.openai.chat.completions.create(
        model="null", messages=HELLO, max_tokens=1, logprobs=True, top_logprobs=2
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    entry = logprobs.content[0]
    assert (entry.token, entry.logprob, entry.bytes) == ("T", -0.5, [84])
    assert [(top.token, top.logprob, top.bytes) for top in entry.top_logprobs] == [("T", -0.5, [84]), ("U", -1.5, [85])]


async def test_chat_logprobs_without_alternatives_are_streamed_with_their_tokens(server: Server) -> None:
    tokens = []
    async for chunk in await server.openai.chat.completions.create(
        model="null", messages=HELLO, max_tokens=9, logprobs=True, stream=True
    ):
        logprobs = chunk.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        tokens += [entry.token for entry in logprobs.content]
        assert all(entry.top_logprobs == [] for entry in logprobs.content)
    assert "".join(tokens) == "The quick"


async def test_echo_with_logprobs_scores_the_prompt_as_evaluation_harnesses_need_it(server: Server) -> None:
    reply = await server.openai.completions.create(
        model="null", prompt=[72, 105, 33], max_tokens=1, logprobs=1, echo=True, temperature=0
    )
    choice = reply.choices[0]
    assert choice.text == "Hi!T"
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["H", "i", "!", "T"]
    assert logprobs.token_logprobs == [None, -0.5, -0.5, -0.5]
    assert logprobs.text_offset == [0, 1, 2, 3]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.top_logprobs[1:] == [{"i": -0.5}, {"!": -0.5}, {"T": -0.5}]


async def test_echo_with_zero_tokens_gives_the_prompt_alone(server: Server) -> None:
    reply = await server.openai.completions.create(model="null", prompt="Hi!", max_tokens=0, logprobs=1, echo=True)
    choice = reply.choices[0]
    assert choice.text == "Hi!"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]


async def test_echo_with_zero_tokens_is_billed_for_the_prompt_alone(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "appliance.server.request")
    body = {"prompt": ["Hi!", "You"], "n": 2, "max_tokens": 0, "echo": True, "return_token_ids": True}
    _, reply = await server.post("/v1/completions", body)
    usage = reply["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (6, 0, 6)
    assert [choice["token_ids"] for choice in reply["choices"]] == [[]] * 4
    assert "completion_tokens" not in caplog.records[-1].fields  # type: ignore[attr-defined]
    usages = [
        chunk.usage
        async for chunk in await server.openai.completions.create(
            model="null",
            prompt="Hi!",
            max_tokens=0,
            echo=True,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        )
    ]
    assert len(usages) == 2
    assert all(u is not None and (u.completion_tokens, u.total_tokens) == (0, 3) for u in usages)


@pytest.mark.parametrize("logprobs", [None, 1])
async def test_echo_is_streamed_first(server: Server, logprobs: int | None) -> None:
    text, tokens = "", []
    async for chunk in await server.openai.completions.create(
        model="null", prompt="Hi! ", max_tokens=3, echo=True, stream=True, logprobs=logprobs
    ):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs is not None:
            tokens += chunk.choices[0].logprobs.tokens or []
    assert text == "Hi! The"
    assert tokens == (list("Hi! The") if logprobs else [])


async def test_prompt_logprobs_are_maps_from_token_id(server: Server) -> None:
    _, reply = await server.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1, "prompt_logprobs": 2})
    first, second = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    assert second == {
        "105": {"logprob": -0.5, "rank": 1, "decoded_token": "i"},
        "106": {"logprob": -1.5, "rank": 2, "decoded_token": "j"},
    }
    _, reply = await server.post("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1, "prompt_logprobs": 0})
    assert reply["prompt_logprobs"][0] is None
    assert all(len(position) == 1 for position in reply["prompt_logprobs"][1:])
