"""Overload is refused at once, and a client that goes away leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import aiohttp
import openai
import pytest

from tests.integration.server.harness import Server, eventually

TEXT = "/v1/completions"


async def test_more_sequences_than_may_wait_are_refused_and_served_later(start: Any) -> None:
    server: Server = await start(max_num_queued_reqs=3)
    server.engine.hold = True
    waiting = [asyncio.create_task(server.post(TEXT, {"prompt": "a", "max_tokens": 2})) for _ in range(3)]
    await eventually(lambda: server.context.admission.sequences == 3)
    async with server.http.post(server.url + TEXT, json={"prompt": "a"}) as response:
        assert response.status == 429
        assert (response.headers["Retry-After"], response.headers["X-Should-Retry"]) == ("1", "true")
        error = (await response.json())["error"]
    assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
    assert "max-num-queued-reqs" in error["message"]
    assert len(server.engine.seen) == 3
    server.engine.hold = False
    assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3
    await server.nothing_is_left()
    assert (
        'vllm:admission_rejections_total{engine="0",model_name="null",reason="max_num_queued_reqs"} 1.0'
        in (await server.get("/metrics"))[1]
    )


async def test_more_prompt_tokens_than_may_wait_are_refused(start: Any) -> None:
    server: Server = await start(max_num_queued_tokens=100)
    server.engine.hold = True
    first = asyncio.create_task(server.post(TEXT, {"prompt": "a" * 90, "max_tokens": 2}))
    await eventually(lambda: server.context.admission.tokens == 90)
    status, reply = await server.post(TEXT, {"prompt": "a" * 11})
    assert (status, reply["error"]["code"]) == (429, "queue_full")
    second = asyncio.create_task(server.post(TEXT, {"prompt": "a" * 10, "max_tokens": 2}))
    await eventually(lambda: server.context.admission.tokens == 100)
    server.engine.hold = False
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]
    await server.nothing_is_left()


async def test_a_request_larger_than_the_queue_runs_when_nothing_else_waits(start: Any) -> None:
    server: Server = await start(max_num_queued_reqs=1, max_num_queued_tokens=2)
    assert (await server.post(TEXT, {"prompt": ["Hello", "there"], "max_tokens": 2}))[0] == 200
    await server.nothing_is_left()


async def test_a_sequence_that_has_its_first_token_waits_no_longer(start: Any) -> None:
    server: Server = await start(max_num_queued_reqs=1)
    server.engine.step_seconds = 0.01
    first = asyncio.create_task(server.post(TEXT, {"prompt": "a", "max_tokens": 50}))
    await eventually(lambda: len(server.engine.running) == 1 and server.context.admission.sequences == 0)
    assert (await server.post(TEXT, {"prompt": "a", "max_tokens": 1}))[0] == 200
    assert (await first)[0] == 200


async def test_a_waiting_stream_gets_pings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.server.sse.PING_SECONDS", 0.02)
    server.engine.hold = True
    async with server.http.post(server.url + TEXT, json={"prompt": "a", "stream": True, "max_tokens": 2}) as response:
        assert response.status == 200  # the headers came before any token
        assert await response.content.readline() == b": ping\n"
        server.engine.hold = False
        events = (await response.text()).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_goes_away_aborts_at_once(server: Server, stream: bool, hold: bool, n: int) -> None:
    server.engine.hold = hold
    server.engine.step_seconds = 0.02
    body = {"prompt": "a", "max_tokens": 250, "stream": stream, "n": n}
    request = asyncio.create_task(server.post(TEXT, body))
    await eventually(lambda: len(server.engine.running) == n)
    request.cancel()  # closes the connection
    await server.nothing_is_left()
    assert len(server.engine.aborted) == n
    await eventually(
        lambda: 'requests_total{key="",outcome="disconnected"} 1.0' in server.context.metrics.exposition().decode()
    )


async def test_closing_a_stream_of_the_client_aborts(server: Server) -> None:
    server.engine.step_seconds = 0.01
    stream = await server.openai.completions.create(model="null", prompt="a", max_tokens=250, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await server.nothing_is_left()


async def test_a_client_that_does_not_read_does_not_stop_the_others(server: Server) -> None:
    server.engine.reply = b"x"
    async with aiohttp.ClientSession() as session:
        body = {"prompt": "a", "max_tokens": 250, "n": 100, "stream": True, "logprobs": 20}
        async with session.post(server.url + TEXT, json=body):  # never read
            assert (await server.post(TEXT, {"prompt": "a", "max_tokens": 20}))[0] == 200
    await server.nothing_is_left()


async def test_nothing_is_left_after_a_thousand_random_disconnects(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.engine.step_seconds = 0.001
    rng = random.Random(7)

    async def one(session: aiohttp.ClientSession) -> None:
        path = rng.choice([TEXT, "/v1/chat/completions"])
        prompt: dict[str, Any] = {"prompt": "a"} if path == TEXT else {"messages": [{"role": "user", "content": "a"}]}
        body = {
            **prompt,
            "max_tokens": rng.randint(1, 200),
            "stream": rng.random() < 0.5,
            "n": rng.choice([1, 1, 1, 2]),
        }
        try:
            async with asyncio.timeout(rng.random() * 0.03), session.post(server.url + path, json=body) as response:
                await response.read()
        except TimeoutError:
            pass

    async def many() -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(50):
                await one(session)

    await asyncio.gather(*(many() for _ in range(20)))
    await server.nothing_is_left()
    await eventually(lambda: server.client.status.stats.kv_cache_usage == 0)
    text = (await server.get("/metrics"))[1]
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="null"} 0.0' in text
    assert 'vllm:num_requests_running{engine="0",model_name="null"} 0.0' in text
    outcomes = {
        line.split('outcome="')[1].split('"')[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("pagebox:requests_total{")
    }
    assert outcomes.keys() <= {"success", "disconnected"}
    assert outcomes["disconnected"] > 100
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    assert (await server.post(TEXT, {"prompt": "a", "max_tokens": 2}))[0] == 200


async def test_a_server_that_drains_finishes_what_runs_and_refuses_the_rest(start: Any) -> None:
    server: Server = await start(drain_timeout=5)
    server.engine.step_seconds = 0.005
    running = asyncio.create_task(server.post(TEXT, {"prompt": "a", "max_tokens": 30}))
    await eventually(lambda: len(server.engine.running) == 1)
    drained = asyncio.create_task(server.drain())
    await eventually(lambda: server.context.draining)
    status, reply = await server.post(TEXT, {"prompt": "a"})
    assert (status, reply["error"]["code"]) == (503, "instance_draining")
    assert (await server.get("/readyz"))[0] == 503
    assert (await server.get("/livez"))[0] == 200
    assert (await running)[0] == 200
    await drained


async def test_what_runs_when_the_drain_ends_gets_an_error_that_says_so(start: Any) -> None:
    server: Server = await start(drain_timeout=0.05)
    server.engine.hold = True
    waiting = asyncio.create_task(server.post(TEXT, {"prompt": "a"}))
    stream = asyncio.create_task(read(server, {"prompt": "a", "stream": True}))
    await eventually(lambda: len(server.engine.running) == 2)
    await server.drain()
    status, reply = await waiting
    assert (status, reply["error"]["code"]) == (503, "instance_draining")
    told = json.loads((await stream).strip().split("\n\n")[-1].removeprefix("data: "))["error"]
    assert told["code"] == "instance_draining"
    for error in (reply["error"], told):
        [choice] = error["resume"]["choices"]
        assert (choice["generated_token_ids"], choice["text"]) == ([], "")
    await server.nothing_is_left()


async def read(server: Server, body: dict[str, Any]) -> str:
    async with server.http.post(server.url + TEXT, json=body) as response:
        return await response.text()


async def test_retries_of_the_client_pass_a_full_queue(start: Any) -> None:
    server: Server = await start(max_num_queued_reqs=1)
    server.engine.hold = True
    first = asyncio.create_task(server.post(TEXT, {"prompt": "a", "max_tokens": 2}))
    await eventually(lambda: server.context.admission.sequences == 1)
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x", max_retries=3) as client:
        second = asyncio.create_task(client.completions.create(model="null", prompt="a", max_tokens=2))
        await eventually(lambda: "queued_reqs" in server.context.metrics.exposition().decode())
        server.engine.hold = False
        assert (await second).choices[0].text == "Th"
    assert (await first)[0] == 200
