"""A request that one machine began and another one ends has the text that a single machine gives it, token by token."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from appliance.config import settings_to_json
from appliance.engine.client import EngineClient
from appliance.server.app import create_app
from appliance.server.http_server import HttpServer
from appliance.server.listening import listen
from appliance.text.load_tokenizer import load_tokenizer
from tests.integration.server.harness import eventually, settings_with

TOKENS = 28
START_SECONDS = 90
CHAT = {"messages": [{"role": "user", "content": "Tell me about the sea, in a few sentences."}]}
TEXT = {"prompt": "The old man looked at the sea and"}
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 12345}
DRAWN = {"temperature": 1.0, "top_k": 50}  # the seed is the server's own, and in the handle
COUNTING = {
    "temperature": 0.8,
    "seed": 7,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.3,
    "min_tokens": 20,
    "bad_words": ["water"],
}


@dataclass
class Machine:
    server: HttpServer
    client: EngineClient
    url: str
    http: aiohttp.ClientSession

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        async with self.http.post(self.url + path, json=body) as response:
            return response.status, await response.json()

    async def events(self, path: str, body: dict[str, Any], interrupt_after: int | None = None) -> list[dict[str, Any]]:
        """All events of a stream. The machine gets a deadline once `interrupt_after` events came."""
        events: list[dict[str, Any]] = []
        async with self.http.post(self.url + path, json={**body, "stream": True}) as response:
            assert response.status == 200
            async for line in response.content:
                if line.startswith(b"data: {"):
                    events.append(json.loads(line[6:]))
                    if len(events) == interrupt_after:
                        self.drain()
        return events

    def drain(self) -> None:
        """So short that what is certain to get many more tokens is shed at once."""
        self.server.drain(time.monotonic() + 0.8)


@asynccontextmanager
async def machine(folder: Path, model: Path) -> AsyncIterator[Machine]:
    folder.mkdir()
    settings = settings_with(model=str(model), served_model_name=("demo",), kv_cache_memory=2**28, max_model_len=512)
    (folder / "settings.json").write_bytes(settings_to_json(settings))
    engine = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "appliance.engine.process", "--socket", str(folder / "engine.sock")),
        *("--settings", str(folder / "settings.json")),
    )
    client = EngineClient(folder / "engine.sock")
    server = HttpServer(create_app(settings, client, lambda: load_tokenizer(settings)))
    listening = listen(settings.server)
    await server.start(listening)
    await client.start()
    try:
        async with aiohttp.ClientSession() as http:
            async with asyncio.timeout(START_SECONDS):
                while (await http.get(listening.url + "/readyz")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            yield Machine(server, client, listening.url, http)
    finally:
        await server.stop()
        await client.close()
        engine.terminate()
        await engine.wait()


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


async def test_a_request_goes_on_elsewhere_token_by_token(tmp_path: Path, demo_model_fp32: Path) -> None:
    """One test for all, since starting two engines takes longer than all requests."""
    async with machine(tmp_path / "a", demo_model_fp32) as first, machine(tmp_path / "b", demo_model_fp32) as second:
        for interrupted, path, body, sampling in (
            (streamed, "/v1/chat/completions", CHAT, GREEDY),
            (whole, "/v1/chat/completions", CHAT, SEEDED),
            (streamed, "/v1/completions", TEXT, SEEDED),
            (whole, "/v1/completions", TEXT, GREEDY),
            (streamed, "/v1/completions", TEXT, DRAWN),
            (streamed, "/v1/completions", TEXT, COUNTING),
        ):
            request = {**body, **sampling, "max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
            await interrupted(first, second, path, request)
        await several_choices(first, second)
        await a_stop_string_that_began_before(second)
        await mistakes(second)


async def streamed(first: Machine, second: Machine, path: str, request: dict[str, Any]) -> None:
    events = await first.events(path, request, interrupt_after=8)
    first.server.cancel_drain()
    error = events[-1]["error"]
    assert error["code"] == "instance_draining", error
    [choice] = error["resume"]["choices"]
    assert 5 < len(choice["generated_token_ids"]) < TOKENS
    assert choice["text"] == text_of(events[:-1])
    rest = await second.events(path, {**request, "resume": error["resume"]})
    ids = [token for event in rest for c in event["choices"] for token in c["token_ids"]]
    await is_what_one_machine_gives(second, path, request, choice, ids, text_of(rest))


async def whole(first: Machine, second: Machine, path: str, request: dict[str, Any]) -> None:
    asked = asyncio.create_task(first.post(path, request))
    await eventually(lambda: first.client.status.stats.num_running == 1)
    await asyncio.sleep(0.15)
    first.drain()
    status, reply = await asked
    first.server.cancel_drain()
    assert status == 503
    [choice] = reply["error"]["resume"]["choices"]
    status, rest = await second.post(path, {**request, "resume": reply["error"]["resume"]})
    assert status == 200, rest
    [ended] = rest["choices"]
    assert rest["usage"]["completion_tokens"] == TOKENS - len(choice["generated_token_ids"])
    text = ended["text"] if "text" in ended else ended["message"]["content"]
    await is_what_one_machine_gives(second, path, request, choice, ended["token_ids"], text)


async def is_what_one_machine_gives(
    machine: Machine, path: str, request: dict[str, Any], before: dict[str, Any], ids: list[int], text: str
) -> None:
    _, reply = await machine.post(path, {**request, "seed": before["seed"]})
    [choice] = reply["choices"]
    assert before["generated_token_ids"] + ids == choice["token_ids"], request
    assert before["text"] + text == (choice["text"] if "text" in choice else choice["message"]["content"])


async def several_choices(first: Machine, second: Machine) -> None:
    request = {**TEXT, **SEEDED, "max_tokens": TOKENS, "ignore_eos": True, "n": 3, "return_token_ids": True}
    events = await first.events("/v1/completions", request, interrupt_after=12)
    first.server.cancel_drain()
    handle = events[-1]["error"]["resume"]
    assert [choice["seed"] for choice in handle["choices"]] == [12345, 12346, 12347]
    handle["choices"][0]["finish_reason"] = "stop"  # as if it had ended before
    _, rest = await second.post("/v1/completions", {**request, "resume": handle})
    _, reply = await second.post("/v1/completions", request)
    assert [choice["index"] for choice in rest["choices"]] == [1, 2]
    for choice in rest["choices"]:
        before = handle["choices"][choice["index"]]["generated_token_ids"]
        assert before + choice["token_ids"] == reply["choices"][choice["index"]]["token_ids"]


async def a_stop_string_that_began_before(second: Machine) -> None:
    request = {**TEXT, **GREEDY, "max_tokens": TOKENS, "ignore_eos": True, "return_token_ids": True}
    _, reply = await second.post("/v1/completions", request)
    ids, text = reply["choices"][0]["token_ids"], reply["choices"][0]["text"]
    prompt_tokens = reply["usage"]["prompt_tokens"]
    stop = text[20:30]
    _, expected = await second.post("/v1/completions", {**request, "stop": stop})
    cut = 1
    while len(await decoded(second, ids[:cut])) <= 22:  # until it ends in the middle of the stop string
        cut += 1
    choice = {"index": 0, "generated_token_ids": ids[:cut], "text": "", "seed": 0, "position": prompt_tokens + cut}
    _, rest = await second.post("/v1/completions", {**request, "stop": stop, "resume": {"choices": [choice]}})
    assert expected["choices"][0]["text"] == text[:20]
    assert rest["choices"][0]["text"] == ""
    assert (rest["choices"][0]["finish_reason"], rest["choices"][0]["stop_reason"]) == ("stop", stop)


async def decoded(machine: Machine, ids: list[int]) -> str:
    return (await machine.post("/detokenize", {"tokens": ids}))[1]["prompt"]


async def mistakes(second: Machine) -> None:
    request = {**TEXT, **GREEDY, "max_tokens": 2}
    _, reply = await second.post("/v1/completions", request)
    prompt_tokens = reply["usage"]["prompt_tokens"]
    good = {"index": 0, "generated_token_ids": [5], "text": "", "seed": 0, "position": prompt_tokens + 1}
    for wrong, param, code in (
        ({"position": prompt_tokens}, "resume.choices[0].position", "resume_mismatch"),
        ({"index": 1}, "resume.choices[0].index", "invalid_value"),
        ({"generated_token_ids": [10**6]}, "resume.choices[0].generated_token_ids", "invalid_value"),
        ({"generated_token_ids": [5, 5], "position": prompt_tokens + 2}, "resume.choices[0]", "invalid_value"),
        ({"finish_reason": "stop"}, "resume", "invalid_value"),
        ({"seed": 2**70}, "resume.choices[0].seed", "invalid_value"),
    ):
        body = {**request, "resume": {"choices": [{**good, **wrong}]}}
        status, reply = await second.post("/v1/completions", body)
        assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, param, code), wrong
    assert (await second.post("/v1/completions", {**request, "resume": {"choices": [good]}}))[0] == 200
