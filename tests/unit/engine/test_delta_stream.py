from __future__ import annotations

import asyncio

import pytest

from appliance.engine.client import EngineUnavailable
from appliance.engine.delta_stream import DeltaStream
from appliance.protocol.wire import TokenDelta, TokenLogprobs


class Taker:
    """Takes until it has the last token or has seen `token_id`."""

    def __init__(self, stream: DeltaStream, until: int | None = None) -> None:
        self.deltas: list[TokenDelta] = []
        self._stream = stream
        self._until = until

    def take(self, delta: TokenDelta) -> bool:
        self.deltas.append(delta)
        return delta.finish_reason is None and self._until not in delta.token_ids

    async def run(self) -> None:
        await self._stream.feed(self.take)


async def test_what_a_slow_consumer_missed_comes_as_one_delta() -> None:
    stream = DeltaStream()
    first = TokenLogprobs([1], [-0.5], 1)
    second = TokenLogprobs([2], [-0.25], 1)
    stream.put(TokenDelta("r", [1], logprobs=[first], num_cached_tokens=16, queue_time=0.5, prompt_logprobs=[None]))
    stream.put(TokenDelta("r", [2], logprobs=[second]))
    stream.put(TokenDelta("r", [], finish_reason="stop", stop_reason=7))
    taker = Taker(stream)
    await taker.run()
    assert taker.deltas == [
        TokenDelta(
            "r",
            [1, 2],
            logprobs=[first, second],
            finish_reason="stop",
            stop_reason=7,
            num_cached_tokens=16,
            prompt_logprobs=[None],
            queue_time=0.5,
        )
    ]
    assert stream.is_complete


async def test_deltas_that_arrive_together_are_handed_over_once_without_waking_a_task() -> None:
    stream = DeltaStream()
    taker = Taker(stream)
    running = asyncio.create_task(taker.run())
    await asyncio.sleep(0)
    assert stream.put(TokenDelta("r", [1]))
    assert not stream.put(TokenDelta("r", [2]))
    stream.deliver()
    assert [delta.token_ids for delta in taker.deltas] == [[1, 2]]
    assert stream.put(TokenDelta("r", [3], finish_reason="length"))
    stream.deliver()
    assert taker.deltas[-1].token_ids == [3]
    await running


async def test_a_consumer_that_has_enough_gets_the_rest_when_it_comes_back() -> None:
    stream = DeltaStream()
    taker = Taker(stream, until=1)
    running = asyncio.create_task(taker.run())
    await asyncio.sleep(0)
    for token in (1, 2, 3):
        stream.put(TokenDelta("r", [token], finish_reason="length" if token == 3 else None))
        stream.deliver()
    await running
    assert [delta.token_ids for delta in taker.deltas] == [[1]]
    await taker.run()
    assert [delta.token_ids for delta in taker.deltas] == [[1], [2, 3]]


async def test_a_failure_comes_after_the_tokens_before_it() -> None:
    for is_waiting in (False, True):
        stream = DeltaStream()
        taker = Taker(stream)
        running = asyncio.create_task(taker.run())
        if is_waiting:
            await asyncio.sleep(0)
        stream.put(TokenDelta("r", [1]))
        stream.fail(EngineUnavailable("gone"))
        with pytest.raises(EngineUnavailable, match="gone"):
            await running
        assert [delta.token_ids for delta in taker.deltas] == [[1]]


async def test_what_the_consumer_raises_is_raised_where_it_feeds() -> None:
    stream = DeltaStream()

    def refuse(delta: TokenDelta) -> bool:
        raise ConnectionResetError("nobody reads this")

    running = asyncio.create_task(stream.feed(refuse))
    await asyncio.sleep(0)
    stream.put(TokenDelta("r", [1]))
    stream.deliver()
    with pytest.raises(ConnectionResetError, match="nobody reads this"):
        await running


async def test_a_consumer_that_was_cancelled_is_not_called_again() -> None:
    stream = DeltaStream()
    taker = Taker(stream)
    running = asyncio.create_task(taker.run())
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    stream.put(TokenDelta("r", [1]))
    stream.deliver()
    assert taker.deltas == []
