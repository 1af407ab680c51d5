"""`pagebox bench serve` as a person runs it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from tests.unit.bench.scripted_server import DONE, ScriptedServer, text, usage

SCRIPT: list[str | float] = [text("a"), text("b", finish_reason="length"), usage(12, 2, cached=3), DONE]
SMALL = ["--num-prompts", "5", "--input-len", "12", "--output-len", "2"]


async def bench(server: ScriptedServer, *words: str) -> int:
    return await asyncio.to_thread(main, ["bench", "serve", "--base-url", server.url, *words])


async def test_a_run_counts_everything_and_saves_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    async with ScriptedServer(SCRIPT).running() as server:
        code = await bench(server, *SMALL, "--json", "--save", str(file), "--seed", "4", "--warmup", "2")
    printed, err = capsys.readouterr()
    assert code == 0
    result = json.loads(printed)
    assert result == json.loads(file.read_text())
    assert (result["completed"], result["failed"], result["seed"], result["model_id"]) == (5, 0, 4, "one")
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (60, 10)
    assert result["total_cached_tokens"] == 15
    assert {"p50_ttft_ms", "p90_tpot_ms", "p99_itl_ms", "median_e2el_ms"} <= set(result)
    assert len(server.bodies) == 7
    # The server's tokenizer adds one token, so that 11 words are 12 tokens.
    assert {len(body["prompt"].split()) for body in server.bodies} == {11}
    assert len({body["prompt"] for body in server.bodies}) == 7  # no prompt was cached by the warm-up
    assert "5 of 5 requests" in err  # plain lines, as this is no terminal


async def test_the_same_seed_sends_the_same_prompts() -> None:
    async with ScriptedServer(SCRIPT).running() as server:
        for _ in range(2):
            await bench(server, *SMALL, "--dataset", "shared-prefix", "--prefix-len", "6", "--seed", "9")
    prompts = [body["prompt"] for body in server.bodies]
    assert sorted(prompts[:5]) == sorted(prompts[5:])
    assert len({tuple(prompt.split()[:5]) for prompt in prompts}) == 1


async def test_failed_requests_are_shown_by_kind_and_make_the_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedServer((429, '{"error": {"message": "Slow down", "code": "too_many"}}')).running() as server:
        code = await bench(server, *SMALL)
    assert code == 1
    printed = capsys.readouterr().out
    assert "5 × HTTP 429 too_many: Slow down" in printed


async def test_token_ids_are_sent_where_no_tokenizer_can_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedServer(SCRIPT, has_tokenizer=False).running() as server:
        assert await bench(server, *SMALL) == 0
        assert {len(body["prompt"]) for body in server.bodies} == {12}
        assert max(max(body["prompt"]) for body in server.bodies) < 100
        assert "as token ids" in capsys.readouterr().err
        assert await bench(server, *SMALL, "--endpoint", "chat") == 1
        assert "--tokenizer" in capsys.readouterr().err


async def test_a_file_of_prompts_is_sent_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\n")
    async with ScriptedServer(SCRIPT).running() as server:
        code = await bench(
            server, "--dataset", "text", "--dataset-path", str(file), "--endpoint", "/v1/chat/completions"
        )
    assert code == 0
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == ["one", "two"]


@pytest.mark.parametrize(
    ("server", "words", "message"),
    [
        ({"ready": (503, {"reason": "Reading weights"})}, [], "is not ready: Reading weights. Wait until"),
        ({"models": (401, {"error": {"message": "No key"}})}, [], "refuses the request: No key. Give a valid key"),
        ({}, ["--model", "ones"], "has no model 'ones', but one, two; did you mean one?"),
        ({"models": (500, "broken")}, [], "--base-url"),
        ({"models": (200, {"data": []})}, [], "has no model"),
    ],
)
async def test_what_stands_in_the_way_is_said_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], server: dict[str, Any], words: list[str], message: str
) -> None:
    async with ScriptedServer(SCRIPT, **server).running() as running:
        assert await bench(running, *SMALL, *words) == 1
    assert message in capsys.readouterr().err
    assert running.bodies == []


async def test_a_server_that_is_not_there_is_named_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedServer().running() as server:
        pass
    assert await bench(server, *SMALL) == 1
    message = capsys.readouterr().err
    assert f"no server answers at {server.url}" in message
    assert "(Connection refused)" in message
    assert "pagebox serve MODEL" in message


async def test_a_named_model_is_believed_where_there_is_no_list(capsys: pytest.CaptureFixture[str]) -> None:
    async with ScriptedServer(SCRIPT, models=(404, {}), ready=(404, {})).running() as server:
        assert await bench(server, *SMALL, "--model", "mine") == 0
    assert {body["model"] for body in server.bodies} == {"mine"}


@pytest.mark.parametrize(
    "words",
    [
        ["--num-prompts", "0"],
        ["--request-rate", "-1"],
        ["--request-rate", "nan"],
        ["--burstiness", "inf"],
        ["--percentiles", "50,101"],
        ["--extra-body", "[1]"],
        ["--dataset", "text"],
        ["--dataset-path", "x"],
        ["--save", "/no/such/folder/x.json"],
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["bench", "serve", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
