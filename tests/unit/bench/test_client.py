"""The streaming client against a real HTTP server that follows a script."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from appliance.bench.client import Record, Target, new_session, send
from appliance.bench.load import run_load
from appliance.bench.workload import Prompt
from tests.unit.bench.scripted_server import CUT, DONE, ScriptedServer, delta, text, usage

PROMPT = Prompt("Say it", 8)
END = text("", finish_reason="length")


async def sent(script: list[str | float] | tuple[int, str], **how: Any) -> Record:
    async with ScriptedServer(script).running() as server:
        target = Target(server.url, "one", **how)
        async with new_session(target) as session:
            return await send(session, target, PROMPT)


async def test_chunks_are_timed_as_they_arrive() -> None:
    record = await sent([0.05, text("a"), 0.1, text("b"), text("c"), END, usage(7, 3, cached=4), DONE])
    first, second, third = (arrived - record.sent for arrived in record.chunk_times)
    # Only lower bounds, all from the sending on: a busy machine makes anything later.
    assert 0.04 <= first <= second <= third <= record.ended - record.sent
    assert second >= 0.14
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (7, 3, 4)
    assert (record.error, record.counted_by_server) == (None, True)


async def test_the_role_and_the_finish_reason_of_a_chat_are_no_text() -> None:
    script = [delta(role="assistant", content=""), 0.05, delta(reasoning_content="hm"), delta(content="yes"), delta()]
    record = await sent([*script, END, DONE], endpoint="chat")
    assert len(record.chunk_times) == 2
    assert record.chunk_times[0] - record.sent >= 0.04


async def test_tokens_are_chunks_where_the_server_counts_none() -> None:
    record = await sent([text("a"), text("b"), END, DONE])
    assert (record.output_tokens, record.counted_by_server, record.prompt_tokens) == (2, False, None)


async def test_usage_may_come_with_the_last_choice_and_the_end_without_a_mark() -> None:
    counts = {"prompt_tokens": 5, "completion_tokens": 2}
    last = "data: " + json.dumps({"choices": [{"text": "", "finish_reason": "length"}], "usage": counts}) + "\n\n"
    record = await sent([text("a"), text("b"), last])
    assert (record.error, record.prompt_tokens, record.output_tokens) == (None, 5, 2)


async def test_events_may_be_split_anywhere_and_mixed_with_comments() -> None:
    stream = ": ping\n\n" + text("grüße") + ": ping\n\nevent: x\n" + text("b") + END + usage(1, 2) + DONE
    record = await sent([stream[:30], 0.01, stream[30:41], 0.01, stream[41:]])
    assert (len(record.chunk_times), record.output_tokens, record.error) == (2, 2, None)


@pytest.mark.parametrize(
    ("script", "kind", "detail"),
    [
        ((429, '{"error": {"message": "Slow down", "code": "too_many"}}'), "HTTP 429 too_many", "Slow down"),
        ((400, '{"error": {"message": "No", "type": "invalid"}}'), "HTTP 400 invalid", "No"),
        ((503, '{"error": "worker is dead"}'), "HTTP 503", "worker is dead"),
        ((422, '{"detail": "Unexpected fields"}'), "HTTP 422", "Unexpected fields"),
        ((502, "<html>Bad Gateway"), "HTTP 502", "<html>Bad Gateway"),
        (
            [text("a"), 'data: {"error": {"message": "It died", "code": "engine_error"}}\n\n'],
            "error in the stream engine_error",
            "It died",
        ),
        ([text("a"), 'data: {"error": "It died"}\n\n', DONE], "error in the stream", "It died"),
        ([text("a"), text("b")], "stream ended early", "after 2 chunks, without a finish reason"),
        ([text("a"), "data: {oops\n\n", END], "malformed event in the stream", "oops"),
        ([text("a"), 0.02, CUT], "connection failed: ClientPayloadError", ""),
    ],
)
async def test_every_kind_of_failure_is_named(script: Any, kind: str, detail: str) -> None:
    record = await sent(script)
    assert record.error == kind
    assert detail in record.error_detail
    assert record.ended >= record.sent


async def test_a_server_that_is_gone_is_a_failure_not_an_exception() -> None:
    async with ScriptedServer().running() as server:
        target = Target(server.url, "one")
    async with new_session(target) as session:
        record = await send(session, target, PROMPT)
    assert record.error == "connection failed: ClientConnectorError"


async def test_a_request_has_what_was_asked_for() -> None:
    async with ScriptedServer([text("a"), END, DONE]).running() as server:
        target = Target(server.url, "one", "chat", "sk-1", ignore_eos=True, extra={"temperature": 0.5, "top_k": 3})
        async with new_session(target) as session:
            await send(session, target, PROMPT)
        plain = Target(server.url, None)
        async with new_session(plain) as session:
            await send(session, plain, Prompt([5, 6], 4))
    chat, completion = server.bodies
    assert chat == {
        "model": "one",
        "messages": [{"role": "user", "content": "Say it"}],
        "max_tokens": 8,
        "temperature": 0.5,
        "top_k": 3,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert (completion["prompt"], completion["temperature"]) == ([5, 6], 0)
    assert not {"model", "ignore_eos"} & set(completion)  # what a server beside vLLM may refuse is not sent unasked
    assert server.keys == ["Bearer sk-1", None]


async def test_no_more_requests_are_under_way_than_allowed_and_the_order_is_kept() -> None:
    async with ScriptedServer([text("a"), 0.02, END, DONE]).running() as server:
        target = Target(server.url, "one")
        prompts = [Prompt(str(number), number + 1) for number in range(9)]
        finished: list[tuple[int, bool]] = []
        async with new_session(target) as session:
            records = await run_load(
                session, target, prompts, [0.0] * 9, 3, lambda *tokens_and_failed: finished.append(tokens_and_failed)
            )
    assert server.most_under_way == 3
    assert [record.asked_tokens for record in records] == list(range(1, 10))
    assert finished == [(1, False)] * 9


async def test_requests_leave_at_their_time() -> None:
    async with ScriptedServer([text("a"), END, DONE]).running() as server:
        target = Target(server.url, "one")
        async with new_session(target) as session:
            began = time.perf_counter()
            records = await run_load(session, target, [PROMPT] * 3, [0.0, 0.05, 0.1])
    assert records[1].sent - began >= 0.04
    assert records[2].sent - began >= 0.09
