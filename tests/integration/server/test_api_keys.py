"""Keys of the file at work, as the real OpenAI client sees them."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.keys.editor import KeyEditor
from appliance.keys.errors import KeysError
from appliance.keys.record import KeyRecord
from tests.integration.server.harness import KEY, Server, eventually
from tests.integration.server.test_server_processes import Served, ready_on_new_connections, served

NOW = datetime.now(UTC)


@pytest.fixture
def editor(tmp_path: Path) -> KeyEditor:
    editor = KeyEditor(tmp_path / "keys.yaml", tmp_path / "keys.pepper")
    editor.add("nobody", NOW)
    return editor


def options(editor: KeyEditor, **more: Any) -> dict[str, Any]:
    return {"api_keys_file": str(editor._path), **more}


def client(server: Server | Served, key: str, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url + "/v1", api_key=key, max_retries=retries)


async def ask(one: openai.AsyncOpenAI, **more: Any) -> Any:
    """The prompt is five tokens."""
    return await one.completions.with_raw_response.create(
        **{"model": "null", "prompt": "hello", "max_tokens": 3} | more
    )


def headers_of(response: Any) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}


async def test_only_valid_keys_get_in_and_the_others_are_told_why(start: Any, editor: KeyEditor) -> None:
    _, valid = editor.add("alice", NOW)
    _, expired = editor.add("bob", NOW, expires=NOW)
    revoked, revoked_key = editor.add("carol", NOW)
    editor.revoke("carol", NOW)
    server: Server = await start(**options(editor, api_key=(KEY,)))
    async with client(server, valid) as one:
        assert [model.id async for model in one.models.list()] == ["null"]
    async with client(server, KEY) as one:  # of the setting api-key, beside those of the file
        assert headers_of(await ask(one)) == {}
    for key, code in (
        (expired, "expired_api_key"),
        (revoked_key, "revoked_api_key"),
        (valid + "x", "invalid_api_key"),
        ("sk-nothing", "invalid_api_key"),
    ):
        async with client(server, key) as one:
            with pytest.raises(openai.AuthenticationError) as caught:
                await one.models.list()
            assert caught.value.code == code
            assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"
            assert key not in caught.value.message
    metrics = (await server.get("/metrics", headers={"Authorization": f"Bearer {valid}"}))[1]
    assert f'pagebox:requests_total{{key="{revoked.id}",outcome="denied"}} 1.0' in metrics


async def test_requests_a_minute_are_counted_and_refused_with_openais_headers(start: Any, editor: KeyEditor) -> None:
    record, key = editor.add("alice", NOW, rpm=2)
    server: Server = await start(**options(editor))
    async with client(server, key) as one:
        first, second = headers_of(await ask(one)), headers_of(await ask(one))
        assert (first["x-ratelimit-limit-requests"], first["x-ratelimit-remaining-requests"]) == ("2", "1")
        assert second["x-ratelimit-remaining-requests"] == "0"
        assert 29 < float(first["x-ratelimit-reset-requests"].removesuffix("s")) <= 30
        with pytest.raises(openai.RateLimitError, match="may send 2 requests a minute") as caught:
            await ask(one)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    refused = caught.value.response.headers
    assert 25 <= int(refused["retry-after"]) <= 30 and 25_000 < int(refused["retry-after-ms"]) <= 30_000
    assert refused["x-should-retry"] == "true" and refused["x-ratelimit-remaining-requests"] == "0"
    metrics = (await server.get("/metrics", headers={"Authorization": f"Bearer {key}"}))[1]
    assert f'pagebox:key_refusals_total{{key="{record.id}",limit="requests"}} 1.0' in metrics
    assert f'pagebox:requests_total{{key="{record.id}",outcome="rejected"}} 1.0' in metrics
    assert f'pagebox:key_tokens_total{{key="{record.id}",kind="prompt"}} 10.0' in metrics
    assert f'pagebox:key_tokens_total{{key="{record.id}",kind="completion"}} 6.0' in metrics


async def test_the_real_client_waits_as_long_as_it_is_told_and_then_succeeds(start: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW, rpm=120)
    server: Server = await start(**options(editor))
    async with client(server, key, retries=5) as one:
        await asyncio.gather(*(ask(one) for _ in range(121)))
    assert len(server.engine.seen) == 121


async def test_tokens_are_reserved_and_what_was_not_used_is_given_back(start: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW, tpm=100)
    server: Server = await start(**options(editor))
    server.engine.hold = True
    async with client(server, key) as one:
        stream = await one.completions.create(model="null", prompt="hello", max_tokens=60, stream=True)
        with pytest.raises(openai.RateLimitError, match=r"100 tokens a minute; 3[5-9] are left now") as caught:
            await ask(one, max_tokens=40)
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "tokens")
        with pytest.raises(openai.RateLimitError, match="may take 101 tokens") as caught:
            await ask(one, max_tokens=96)
        assert (caught.value.code, caught.value.type) == ("request_too_large", "tokens")
        assert caught.value.response.headers["x-should-retry"] == "false"
        server.engine.reply_tokens = 7
        server.engine.hold = False
        server.engine._work.set()
        async for _ in stream:
            pass
        await server.nothing_is_left()
        left = int(headers_of(await ask(one, max_tokens=1))["x-ratelimit-remaining-tokens"])
        assert 75 <= left <= 100 - 6  # 5 + 7 or 8 were used, 6 are taken now, and some came back with time


async def test_a_reply_without_a_stated_length_may_overdraw_and_is_charged(start: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW, tpm=120)
    server: Server = await start(**options(editor))
    server.engine.reply_tokens = 110
    async with client(server, key) as one:
        body: dict[str, Any] = {"model": "null", "messages": [{"role": "user", "content": "hi"}]}
        reply = await one.chat.completions.create(**body)
        assert reply.usage is not None and reply.usage.total_tokens > 120
        with pytest.raises(openai.RateLimitError, match="120 tokens a minute; 0 are left") as caught:
            await one.chat.completions.create(**body)
        owed = reply.usage.total_tokens - 120
        assert owed / 2 - 2 < int(caught.value.response.headers["retry-after"]) <= owed / 2 + 1  # two come in a second


async def test_requests_at_a_time_end_with_their_streams_and_with_their_clients(start: Any, editor: KeyEditor) -> None:
    _, key = editor.add("alice", NOW, concurrency=1)
    server: Server = await start(**options(editor))
    server.engine.hold = True
    async with client(server, key) as one:
        stream = await one.completions.create(model="null", prompt="hello", max_tokens=3, stream=True)
        with pytest.raises(openai.RateLimitError, match="1 requests at a time, and 1 are running") as caught:
            await ask(one)
        assert caught.value.type == "concurrency" and caught.value.response.headers["retry-after"] == "1"
        await stream.close()  # the client goes away
        await server.nothing_is_left()
        server.engine.hold = False
        server.engine._work.set()

        async def again() -> bool:
            try:
                await ask(one)
            except openai.RateLimitError:
                return False
            return True

        for _ in range(100):
            if await again():
                break
            await asyncio.sleep(0.02)
        assert await again()


async def test_a_key_sees_and_uses_its_models_alone(start: Any, editor: KeyEditor) -> None:
    _, small = editor.add("alice", NOW, models=["small", "gone"])
    _, none = editor.add("bob", NOW, models=["gone"])
    server: Server = await start(**options(editor, served_model_name=("large", "small")))
    async with client(server, small) as one:
        assert [model.id async for model in one.models.list()] == ["small"]
        assert (await ask(one, model="small")).parse().model == "small"
        with pytest.raises(openai.PermissionDeniedError, match="may not use the model `large`") as caught:
            await ask(one, model="large")
        assert (caught.value.code, caught.value.type, caught.value.param) == (
            *("model_not_allowed", "permission_error"),
            "model",
        )
        with pytest.raises(openai.PermissionDeniedError):
            await one.models.retrieve("large")
        with pytest.raises(openai.NotFoundError, match="this server has small"):
            await ask(one, model="other")
    unnamed = {"prompt": "hello", "max_tokens": 1}
    status, body = await server.post("/v1/completions", unnamed, headers={"Authorization": f"Bearer {small}"})
    assert (status, body["model"]) == (200, "small")
    status, body = await server.post("/v1/completions", unnamed, headers={"Authorization": f"Bearer {none}"})
    assert status == 403


async def test_priority_fairness_and_cache_salt_come_from_the_key(start: Any, editor: KeyEditor) -> None:
    urgent, urgent_key = editor.add("alice", NOW, priority=-5)
    _, slow_key = editor.add("bob", NOW, priority=3, cache_group="team")
    _, team_key = editor.add("carol", NOW, cache_group="team")
    server: Server = await start(**options(editor, scheduling_policy="priority"))

    async def seen(key: str, **more: Any) -> Any:
        async with client(server, key) as one:
            await ask(one, extra_body=more)
        return server.engine.seen[-1]

    first = await seen(urgent_key)
    assert (first.priority, first.key_id) == (-5, urgent.id)
    assert (await seen(urgent_key, priority=-9)).priority == -5  # none is more urgent than its key
    assert (await seen(urgent_key, priority=9)).priority == 9
    slow, team = await seen(slow_key), await seen(team_key)
    assert slow.priority == 3 and team.priority == 0
    assert first.cache_salt != slow.cache_salt == team.cache_salt
    assert (await seen(team_key, cache_salt="mine")).cache_salt not in ("mine", team.cache_salt)


async def test_the_file_is_read_again_when_it_changes(start: Any, editor: KeyEditor) -> None:
    server: Server = await start(**options(editor))
    record, key = editor.add("alice", NOW, rpm=100)
    keys = server.context.keys

    def limit() -> int | None:
        try:
            found = keys.check(f"Bearer {key}")[1]
        except Exception:
            return 0
        return None if found is None else found.rpm

    assert limit() == 0
    await eventually(lambda: limit() == 100)
    editor._path.write_text(editor._path.read_text().replace("rpm: 100", "rpm: 7"))
    await eventually(lambda: limit() == 7)
    editor._path.write_text("nonsense")
    server.context.reload_keys()
    await asyncio.sleep(0.1)
    assert limit() == 7
    _, rotated = editor_with(editor, record).rotate(record.id, NOW, timedelta(hours=1))
    server.context.reload_keys()
    async with client(server, rotated) as new, client(server, key) as old:
        await asyncio.sleep(0.1)
        assert headers_of(await ask(new))["x-ratelimit-remaining-requests"] == "99"
        assert headers_of(await ask(old))["x-ratelimit-remaining-requests"] == "98"


def editor_with(editor: KeyEditor, record: KeyRecord) -> KeyEditor:
    """`editor`, its file whole again with one key."""
    editor._write([record])
    return editor


async def test_the_audit_log_says_who_did_what_and_no_secret(start: Any, editor: KeyEditor, tmp_path: Path) -> None:
    record, key = editor.add("alice", NOW, rpm=2, models=["null"])
    log = tmp_path / "audit.jsonl"
    server: Server = await start(**options(editor, audit_log=str(log), served_model_name=("null", "other")))
    async with client(server, key) as one:
        await ask(one, extra_headers={"X-Request-Id": "r-1", "X-Forwarded-For": "203.0.113.9"})
        log.rename(tmp_path / "audit.jsonl.1")
        with pytest.raises(openai.PermissionDeniedError):
            await ask(one, model="other")
        with pytest.raises(openai.RateLimitError):
            await ask(one)
    async with client(server, "sk-guess") as one:
        with pytest.raises(openai.AuthenticationError):
            await ask(one)
    await server.get("/livez")
    editor.revoke(record.id, NOW)
    server.context.reload_keys()
    await eventually(lambda: "keys_changed" in log.read_text())
    text = (tmp_path / "audit.jsonl.1").read_text() + log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert (
        lines[0].items()
        >= {
            "event": "request",
            "key": record.id,
            "client": "203.0.113.9",
            "method": "POST",
            "route": "/v1/completions",
            "status": 200,
            "outcome": "success",
            "request_id": "r-1",
            "prompt_tokens": 5,
            "completion_tokens": 3,
        }.items()
    )
    assert [(line.get("outcome"), line.get("code"), line.get("key")) for line in lines[1:]] == [
        ("denied", "model_not_allowed", record.id),
        ("rejected", "rate_limit_exceeded", record.id),
        ("denied", "invalid_api_key", None),
        ("done", None, None),
    ]
    assert lines[4]["changed"] == [record.id]
    assert "hello" not in text and key.rpartition("-")[2] not in text and "sk-guess" not in text


async def test_a_server_does_not_start_with_keys_that_cannot_be_read(start: Any, tmp_path: Path) -> None:
    with pytest.raises(KeysError, match=r"keys.yaml does not exist"):
        await start(api_keys_file=str(tmp_path / "keys.yaml"))


async def test_the_limits_of_a_key_hold_over_all_processes_and_sighup_reads_them_again(
    tmp_path: Path, editor: KeyEditor
) -> None:
    _, key = editor.add("alice", NOW, rpm=5, concurrency=1)
    async with served(tmp_path, **options(editor)) as running, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(running.session()) for _ in range(4)]

        async def status(session: Any, max_tokens: int = 1, prompt: int = 64) -> int:
            body = {"prompt": [prompt], "max_tokens": max_tokens}
            headers = {"Authorization": f"Bearer {key}"}
            async with session.post("/v1/completions", json=body, headers=headers) as response:
                await response.read()
                return int(response.status)

        running_one = asyncio.create_task(status(sessions[0], 60, 903))
        await asyncio.sleep(0.3)
        assert await status(sessions[1]) == 429  # one at a time, in whichever process
        assert await running_one == 200
        assert [await status(session) for session in sessions] == [200] * 4
        assert await status(sessions[0]) == 429  # five a minute

        editor._path.write_text(editor._path.read_text().replace("rpm: 5\n", "rpm: 5000\n"))
        running.process.send_signal(signal.SIGHUP)
        for _ in range(200):
            if await status(sessions[0]) == await status(sessions[1]) == 200:
                break
            await asyncio.sleep(0.05)
        victim = running.servers()[0]
        tasks = [asyncio.create_task(status(session, 400, 903)) for session in sessions[:2]]
        await asyncio.sleep(0.3)
        victim.kill()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ready_on_new_connections(running)
        async with running.session() as session:
            assert await status(session) == 200  # what the dead process ran counts no more
        assert "Traceback" not in running.log.read_text()
