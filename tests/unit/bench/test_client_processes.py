"""Several client processes give the numbers that one gives."""

from __future__ import annotations

import os
import time

import pytest

from appliance.bench.client import Target
from appliance.bench.client_processes import client_processes, run_load_in_processes
from appliance.bench.statistics import summarize
from appliance.bench.workload import Prompt
from tests.unit.bench.scripted_server import DONE, ScriptedServer, text, usage

GAP = 0.05
SCRIPT: list[str | float] = [text("a"), GAP, text("b", finish_reason="length"), usage(12, 2), DONE]


async def test_records_of_all_processes_come_in_the_order_of_the_prompts_and_on_one_clock() -> None:
    finished: list[tuple[int, bool]] = []
    prompts = [Prompt(f"prompt {i}", 2 + i) for i in range(7)]
    async with ScriptedServer(SCRIPT).running() as server:
        began = time.perf_counter()
        records = await run_load_in_processes(
            3,
            Target(server.url, None),
            prompts,
            [0.0] * 7,
            max_concurrency=4,
            on_finished=lambda tokens, failed: finished.append((tokens, failed)),
        )
        ended = time.perf_counter()
    assert [record.asked_tokens for record in records] == [2, 3, 4, 5, 6, 7, 8]
    assert sorted(body["prompt"] for body in server.bodies) == [f"prompt {i}" for i in range(7)]
    assert 3 <= server.most_under_way <= 4
    assert finished == [(2, False)] * 7
    assert all(began < record.sent < record.chunk_times[0] < record.ended < ended for record in records)
    summary = summarize(records)
    assert (summary.completed, summary.output_tokens, len(summary.itl.values)) == (7, 14, 7)
    assert summary.itl.values[0] >= GAP * 0.9


async def test_a_server_that_is_not_there_is_a_failure_of_each_request() -> None:
    records = await run_load_in_processes(2, Target("http://127.0.0.1:9", None), [Prompt("p", 2)] * 3, [0.0] * 3)
    assert [record.error for record in records] == ["connection failed: ClientConnectorError"] * 3


def test_a_few_requests_are_one_process_and_many_at_most_half_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert client_processes(1000, 1) == 1
    assert client_processes(1000, 32) == 1
    assert client_processes(1000, 64) == 2
    assert client_processes(40, None) == 2
    assert client_processes(1000, 256) == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert client_processes(1000, 256) == 1
