"""What the probes say while the parts come up, and when they stop."""

from __future__ import annotations

import json
import threading
from typing import Any

from appliance.protocol.wire import PhaseChange
from appliance.text.tokenizer import Tokenizer
from tests.integration.server.harness import Server, eventually

READY = ("/readyz", "/health", "/ping")


async def test_while_weights_load_the_server_lives_and_tells_the_phase(start: Any) -> None:
    server: Server = await start(engine_ready=False)
    await eventually(lambda: server.client.status.phase == "loading_weights")
    assert (await server.get("/livez"))[0] == 200
    for path in READY:
        status, body = await server.get(path)
        assert (status, json.loads(body)["reason"]) == (503, "The engine is not ready: Half way")
    status, body = await server.get("/startupz")
    answer = json.loads(body)
    assert status == 503
    assert (answer["phase"], answer["detail"], answer["progress"]) == ("loading_weights", "Half way", 0.5)
    assert answer["elapsed"] >= answer["phase_elapsed"] >= 0
    status, reply = await server.post("/v1/completions", {"prompt": "a"})
    assert (status, reply["error"]["code"]) == (503, "engine_unavailable")
    assert (await server.get("/v1/models"))[0] == 200

    server.engine.become_ready()
    await eventually(lambda: server.client.is_ready())
    for path in (*READY, "/startupz"):
        assert (await server.get(path))[0] == 200


async def test_a_failed_start_says_why(start: Any) -> None:
    server: Server = await start(engine_ready=False)
    await eventually(lambda: server.client.status.phase == "loading_weights")
    server.engine.change_phase(PhaseChange("failed", "Not enough memory: lower max-model-len"))
    await eventually(lambda: server.client.status.phase == "failed")
    assert "lower max-model-len" in (await server.get("/readyz"))[1]
    assert "lower max-model-len" in (await server.get("/startupz"))[1]


async def test_ready_waits_for_the_tokenizer_and_tells_when_it_cannot_be_loaded(start: Any) -> None:
    go = threading.Event()

    def load() -> Tokenizer:
        go.wait()
        raise RuntimeError("tokenizer.json is missing")

    server: Server = await start(load_tokenizer=load)
    await eventually(lambda: server.client.is_ready())
    assert "still loading" in (await server.get("/readyz"))[1]
    assert "Loading the tokenizer" in (await server.get("/startupz"))[1]
    go.set()
    await eventually(lambda: server.context.tokenizers.failure is not None)
    status, body = await server.get("/readyz")
    assert status == 503 and "tokenizer.json is missing" in body
    assert (await server.post("/tokenize", {"prompt": "a"}))[0] == 503


async def test_an_engine_that_does_not_answer_is_not_ready_but_has_started(start: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("appliance.engine.watchdog.HEARTBEAT_STALL_SECONDS", 0.2)
    server: Server = await start()
    assert (await server.get("/startupz"))[0] == 200
    server.engine.mute = True
    await eventually(lambda: not server.client.is_ready())
    status, body = await server.get("/readyz")
    assert status == 503 and "stuck" in body
    assert (await server.get("/startupz"))[0] == 200
    assert (await server.get("/livez"))[0] == 200
    server.engine.mute = False
    await eventually(lambda: server.client.is_ready())
