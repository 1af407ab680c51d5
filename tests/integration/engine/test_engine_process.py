"""Real engine processes with a model that counts, real sockets, the real client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest
import uvloop

from appliance.engine import watchdog
from appliance.engine.client import EngineClient, EngineError, EngineUnavailable
from appliance.protocol.wire import AddRequest, Ping, TokenDelta, TraceEvent, encode

from .conftest import RunningEngine, request, running_engine, until
from .null_engine import BLOCK_SIZE, FAILS_ALONE, FAILS_THE_STEP, NUM_BLOCKS, SLOW


async def collect(client: EngineClient, request_id: str, prompt: list[int], max_tokens: int = 4) -> list[TokenDelta]:
    return await all_deltas(client, request(request_id, prompt, max_tokens))


async def all_deltas(client: EngineClient, asked: AddRequest) -> list[TokenDelta]:
    deltas: list[TokenDelta] = []

    def take(delta: TokenDelta) -> bool:
        deltas.append(delta)
        return delta.finish_reason is None

    with client.generate(asked) as stream:
        await stream.feed(take)
    return deltas


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


async def test_a_request_gets_its_tokens_and_a_finish_reason(engine: RunningEngine) -> None:
    deltas = await collect(engine.client, "a", [5, 6, 7])
    assert tokens(deltas) == [8, 9, 10, 11]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "length"
    ready = engine.client.status.ready
    assert ready is not None and ready.num_blocks == NUM_BLOCKS and ready.startup_seconds > 0


def test_client_and_supervisor_work_on_uvloop_too(tmp_path: Path) -> None:
    async def serve_one() -> list[int]:
        async with running_engine(tmp_path) as running:
            await until(running.client.is_ready)
            return tokens(await collect(running.client, "a", [5]))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve_one()) == [6, 7, 8, 9]


async def test_many_requests_at_once_each_get_their_own_tokens(engine: RunningEngine) -> None:
    many = await asyncio.gather(*(collect(engine.client, f"r{i}", [i] * (1 + i % 70), 20) for i in range(60)))
    assert [tokens(deltas) for deltas in many] == [[i + 1 + n for n in range(20)] for i in range(60)]
    await until(lambda: engine.client.status.stats.kv_cache_usage == 0)


async def test_an_impossible_request_ends_with_the_reason(engine: RunningEngine) -> None:
    (delta,) = await collect(engine.client, "long", [1] * 600)
    assert delta.finish_reason == "error"
    assert "512" in (delta.error or "")


async def test_a_request_that_raises_fails_alone(engine: RunningEngine) -> None:
    good, bad = await asyncio.gather(
        collect(engine.client, "good", [1, SLOW, 1], 20), collect(engine.client, "bad", [1, FAILS_ALONE])
    )
    assert bad[-1].finish_reason == "error"
    assert "this row is not computable" in (bad[-1].error or "")
    assert tokens(good) == list(range(2, 22))


async def test_a_step_that_raises_ends_its_requests_and_not_the_engine(engine: RunningEngine) -> None:
    pid = engine.supervisor.pid
    (delta,) = await collect(engine.client, "bad", [1, FAILS_THE_STEP])
    assert delta.finish_reason == "error"
    assert "the device is on fire" in (delta.error or "")
    assert tokens(await collect(engine.client, "next", [1])) == [2, 3, 4, 5]
    assert engine.supervisor.pid == pid


async def test_an_engine_whose_steps_all_fail_is_replaced(engine: RunningEngine) -> None:
    pid = engine.supervisor.pid
    for turn in range(3):
        await collect(engine.client, f"bad{turn}", [1, FAILS_THE_STEP])
    await until(lambda: bool(engine.exits))
    assert "3 steps in a row failed" in engine.client.status.detail or engine.client.is_ready()
    await until(lambda: engine.client.is_ready() and engine.supervisor.pid not in (None, pid))
    assert tokens(await collect(engine.client, "next", [1])) == [2, 3, 4, 5]


async def test_a_killed_engine_is_a_clear_error_for_each_request_and_comes_back(engine: RunningEngine) -> None:
    running = [asyncio.create_task(collect(engine.client, f"r{i}", [SLOW, i], 400)) for i in range(3)]
    await until(lambda: engine.client.status.stats.num_running == 3)
    pid = engine.supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        assert isinstance(outcome, EngineUnavailable)
        assert "stopped while this request ran" in outcome.message
    assert not engine.client.is_ready()
    with pytest.raises(EngineUnavailable, match="not ready"):
        await collect(engine.client, "too-early", [1])
    await until(lambda: bool(engine.exits))
    assert "SIGKILL" in engine.exits[0][0]
    assert "SIGKILL" in engine.client.status.detail
    await until(engine.client.is_ready)
    assert engine.supervisor.pid != pid
    assert tokens(await collect(engine.client, "again", [1])) == [2, 3, 4, 5]


async def test_leaving_the_block_early_frees_the_blocks(engine: RunningEngine) -> None:
    with engine.client.generate(request("left", [SLOW] * 40, 400)) as deltas:
        await deltas.feed(lambda delta: False)
    await until(lambda: engine.client.status.stats.num_running == 0)
    assert engine.client.status.stats.kv_cache_usage == 0
    assert engine.client.status.stats.generation_tokens < 400


async def test_cancelling_the_task_frees_the_blocks(engine: RunningEngine) -> None:
    task = asyncio.create_task(collect(engine.client, "cancelled", [SLOW] * 40, 400))
    await until(lambda: engine.client.status.stats.num_running == 1)
    task.cancel()
    await until(lambda: engine.client.status.stats.num_running == 0)
    assert engine.client.status.stats.kv_cache_usage == 0


async def test_two_servers_may_use_the_same_request_ids(engine: RunningEngine) -> None:
    other = EngineClient(engine.socket, heartbeat_interval=0.1)
    await other.start()
    await until(other.is_ready)
    mine, theirs = await asyncio.gather(
        collect(engine.client, "same", [SLOW, 100], 10), collect(other, "same", [SLOW, 200], 10)
    )
    assert (tokens(mine), tokens(theirs)) == (list(range(101, 111)), list(range(201, 211)))
    await other.close()


async def test_a_server_that_goes_away_takes_its_requests_along_and_no_others(engine: RunningEngine) -> None:
    other = EngineClient(engine.socket, heartbeat_interval=0.1)
    await other.start()
    await until(other.is_ready)
    theirs = asyncio.create_task(collect(other, "same", [SLOW, 200], 400))
    mine = asyncio.create_task(collect(engine.client, "same", [SLOW, 100], 50))
    await until(lambda: engine.client.status.stats.num_running == 2)
    await other.close()
    await until(lambda: engine.client.status.stats.num_running == 1)
    assert tokens(await mine) == list(range(101, 151))
    with pytest.raises(EngineUnavailable):
        await theirs


async def test_a_request_id_in_use_is_refused_at_once(engine: RunningEngine) -> None:
    running = asyncio.create_task(collect(engine.client, "twice", [SLOW, 1], 400))
    await until(lambda: engine.client.status.stats.num_running == 1)
    with pytest.raises(EngineError, match="'twice' is in use"):
        await collect(engine.client, "twice", [1])
    running.cancel()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\x03abc", b"GET / HTTP/1.1\r\n\r\n" * 4])
async def test_a_peer_that_speaks_something_else_loses_its_connection_alone(
    engine: RunningEngine, garbage: bytes
) -> None:
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    writer.write(garbage)
    await asyncio.wait_for(reader.read(), 5)  # ends only when the engine closes
    writer.close()
    assert tokens(await collect(engine.client, "good", [1])) == [2, 3, 4, 5]


async def test_a_server_that_does_not_read_holds_nobody_up(engine: RunningEngine) -> None:
    lazy = socket.socket(socket.AF_UNIX)
    lazy.connect(str(engine.socket))
    lazy.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for _ in range(5):
            lazy.send(encode(Ping()) * 10_000)
    assert tokens(await collect(engine.client, "good", [1], 50)) == list(range(2, 52))
    lazy.close()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_stuck_engine_fails_its_requests_and_is_not_ready_until_it_moves_again(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    limit_stalls_to(monkeypatch, 0.5)
    running = asyncio.create_task(collect(engine.client, "r", [SLOW], 400 if busy else 1))
    await until(lambda: engine.client.status.stats.num_running == 1 if busy else running.done())
    process = psutil.Process(engine.supervisor.pid)
    process.suspend()
    try:
        await until(lambda: not engine.client.is_ready())
        assert engine.client.status.connected
        if busy:
            with pytest.raises(EngineUnavailable, match="The engine stopped answering"):
                await asyncio.wait_for(running, 5)
        with pytest.raises(EngineUnavailable, match="The engine stopped answering"):
            await asyncio.wait_for(collect(engine.client, "too-early", [1]), 5)
    finally:
        process.resume()
    await until(engine.client.is_ready)
    await until(lambda: engine.client.status.stats.num_running == 0)
    assert engine.client.status.stats.generation_tokens < 400  # what was given up is not computed
    assert tokens(await collect(engine.client, "again", [1])) == [2, 3, 4, 5]


async def test_a_server_that_was_suspended_does_not_take_its_engine_for_stuck(
    engine: RunningEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_stalls_to(monkeypatch, 0.5)
    time.sleep(1.0)  # noqa: ASYNC251 - this is the suspension: the loop does not run
    assert engine.client.is_ready()
    running = asyncio.create_task(collect(engine.client, "r", [SLOW], 80))
    await until(lambda: engine.client.status.stats.num_running == 1)
    time.sleep(1.0)  # noqa: ASYNC251
    assert engine.client.is_ready()
    assert len(tokens(await running)) == 80


def limit_stalls_to(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for name in ("HEARTBEAT_STALL_SECONDS", "DECODE_STALL_SECONDS", "PREFILL_STALL_SECONDS", "LONGEST_STALL_SECONDS"):
        monkeypatch.setattr(watchdog, name, seconds)


async def test_an_idle_engine_uses_no_processor_time(engine: RunningEngine) -> None:
    process = psutil.Process(engine.supervisor.pid)
    before = process.cpu_times()
    await asyncio.sleep(1.5)
    after = process.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 0.05 * 1.5
    assert engine.client.is_ready()


async def test_a_traced_request_reports_its_life_and_others_do_not(engine: RunningEngine) -> None:
    events: list[TraceEvent] = []
    engine.client.on_trace = events.append
    await collect(engine.client, "quiet", [1])
    prompt = list(range(5 * BLOCK_SIZE - 3))  # more than a step's budget of 64 tokens
    await all_deltas(engine.client, request("traced", prompt, 2, trace=True))
    assert {event.request_id for event in events} == {"traced"}
    names = [event.event for event in events]
    first_steps = ["scheduled", "step", "blocks_allocated", "scheduled", "step", "token"]
    assert names == ["queued", "admitted", "blocks_allocated", *first_steps, "scheduled", "step", "token", "finished"]


async def test_sigterm_ends_requests_with_the_reason_and_exits_cleanly(engine: RunningEngine) -> None:
    task = asyncio.create_task(collect(engine.client, "r", [SLOW, 1], 400))
    await until(lambda: engine.client.status.stats.num_running == 1)
    pid = engine.supervisor.pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    deltas = await task
    assert deltas[-1].finish_reason == "error"
    assert "shutting down" in (deltas[-1].error or "")
    await until(lambda: bool(engine.exits))
    assert engine.exits[0][0].startswith("The engine process ended with exit code 0")
    assert not engine.socket.exists()


async def test_the_start_is_reported_and_requests_wait_for_its_end(tmp_path: Path) -> None:
    async with running_engine(tmp_path, "slow-start") as starting:
        client = starting.client
        assert not client.is_ready()
        await until(lambda: client.status.phase == "loading_weights" and (client.status.progress or 0) > 0)
        assert client.status.detail == "Reading a very long file"
        assert not client.is_ready()
        with pytest.raises(EngineUnavailable, match="Reading a very long file"):
            await collect(client, "early", [1])
        await until(client.is_ready)
        assert client.status.phase == "ready"


async def test_a_failed_start_says_why_and_is_tried_again(tmp_path: Path) -> None:
    async with running_engine(tmp_path, "not-there") as failing:
        await until(lambda: len(failing.exits) >= 2)
        assert [final for _, final in failing.exits] == [False] * len(failing.exits)
        assert "not-there does not exist" in failing.exits[0][0]
        assert "not-there does not exist" in failing.client.status.detail


async def test_impossible_settings_are_not_tried_again(tmp_path: Path) -> None:
    async with running_engine(tmp_path, "impossible") as failing:
        await until(lambda: bool(failing.exits))
        assert failing.exits == [(failing.exits[0][0], True)]
        assert "contradict each other" in failing.client.status.detail
        assert failing.client.status.phase == "failed"
        await asyncio.sleep(1.2)
        assert len(failing.exits) == 1


async def test_a_second_engine_does_not_take_the_socket_of_the_first(engine: RunningEngine, tmp_path: Path) -> None:
    second = await asyncio.create_subprocess_exec(*engine.supervisor._command, stderr=asyncio.subprocess.PIPE)
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert b"another engine is listening" in errors
    assert tokens(await collect(engine.client, "good", [1])) == [2, 3, 4, 5]
