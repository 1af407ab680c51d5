"""Sends all requests of a workload, at their times and within the allowed concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import aiohttp

from appliance.bench.client import Record, Target, send
from appliance.bench.workload import Prompt

OnFinished = Callable[[int, bool], None]  # generated tokens, and whether the request failed


async def run_load(
    session: aiohttp.ClientSession,
    target: Target,
    prompts: Sequence[Prompt],
    departures: Sequence[float],
    max_concurrency: int | None = None,
    on_finished: OnFinished = lambda tokens, failed: None,
) -> list[Record]:
    """The records, in the order of `prompts`, each of which is sent at its departure (seconds from now) or later, when
    `max_concurrency` requests are under way at that time. `on_finished` hears of each as it ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    places = nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)

    async def one(prompt: Prompt, departure: float) -> Record:
        if departure > 0:
            await asyncio.sleep(began + departure - loop.time())
        async with places:
            record = await send(session, target, prompt)
        on_finished(record.output_tokens, record.error is not None)
        return record

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(*pair)) for pair in zip(prompts, departures, strict=True)]
    return [task.result() for task in tasks]
