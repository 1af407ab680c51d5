from __future__ import annotations

import asyncio

import pytest

from appliance.engine.client import EngineUnavailable
from appliance.engine.delta_stream import DeltaStream
from appliance.protocol.wire import TokenDelta, TokenLogprobs


async def test_what_a_slow_consumer_missed_comes_as_one_delta() -> None:
    stream = DeltaStream()
    first = TokenLogprobs([1], [-0.5], 1)
    second = TokenLogprobs([2], [-0.25], 1)
    stream.put(TokenDelta("r", [1], logprobs=[first], num_cached_tokens=16, queue_time=0.5, prompt_logprobs=[None]))
    stream.put(TokenDelta("r", [2], logprobs=[second]))
    stream.put(TokenDelta("r", [], finish_reason="stop", stop_reason=7))
    assert await stream.take() == TokenDelta(
        "r",
        [1, 2],
        logprobs=[first, second],
        finish_reason="stop",
        stop_reason=7,
        num_cached_tokens=16,
        prompt_logprobs=[None],
        queue_time=0.5,
    )


async def test_a_failure_comes_after_the_tokens_before_it() -> None:
    stream = DeltaStream()
    stream.put(TokenDelta("r", [1]))
    stream.fail(EngineUnavailable("gone"))
    assert (await stream.take()).token_ids == [1]
    with pytest.raises(EngineUnavailable, match="gone"):
        await stream.take()


async def test_a_waiting_consumer_is_woken_by_tokens_and_by_failures() -> None:
    stream = DeltaStream()
    taker = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.put(TokenDelta("r", [3]))
    assert (await taker).token_ids == [3]
    taker = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.fail(EngineUnavailable("gone"))
    with pytest.raises(EngineUnavailable):
        await taker
