"""The metadata client against a service that expires, refuses, fails, hangs and lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

from appliance.aws import imds as module
from appliance.aws.imds import (
    LONGEST_PAUSE_SECONDS,
    Imds,
    ImdsAbsent,
    ImdsDisabled,
    ImdsError,
    ImdsUnreachable,
)
from tests.support.imds_double import INSTANCE_ID, SPOT, ImdsDouble

ID = "meta-data/instance-id"


class Clock:
    """Goes on only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def service() -> AsyncIterator[ImdsDouble]:
    async with ImdsDouble().serving() as double:
        yield double


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def imds(service: ImdsDouble, clock: Clock) -> AsyncIterator[Imds]:
    async with aiohttp.ClientSession() as session:
        yield Imds(session, service.url, monotonic=clock.monotonic, sleep=clock.sleep)


async def test_one_token_serves_many_questions(imds: Imds, service: ImdsDouble) -> None:
    assert await asyncio.gather(*(imds.get(ID) for _ in range(20))) == [INSTANCE_ID] * 20
    assert service.tokens_given == 1


async def test_none_is_an_answer(imds: Imds, clock: Clock) -> None:
    assert [await imds.get(SPOT) for _ in range(3)] == [None] * 3
    assert clock.slept == []


async def test_a_token_is_renewed_before_it_expires(imds: Imds, service: ImdsDouble, clock: Clock) -> None:
    service.token_seconds = "100"
    await imds.get(ID)
    clock.now += 80
    await imds.get(ID)
    assert service.tokens_given == 1
    clock.now += 15
    await imds.get(ID)
    assert service.tokens_given == 2


@pytest.mark.parametrize("seconds", ["soon", "-5", "0", "99999999"])
async def test_a_life_that_is_no_number_of_seconds_is_the_one_asked_for(
    imds: Imds, service: ImdsDouble, clock: Clock, seconds: str
) -> None:
    service.token_seconds = seconds
    await imds.get(ID)
    clock.now += 15_000
    await imds.get(ID)
    assert service.tokens_given == 1


async def test_a_token_that_expired_early_is_replaced_once_for_all_who_notice(imds: Imds, service: ImdsDouble) -> None:
    await imds.get(ID)
    service.expire_tokens()
    assert await asyncio.gather(*(imds.get(ID) for _ in range(5))) == [INSTANCE_ID] * 5
    assert service.tokens_given == 2
    assert all(len(headers) == 1 for headers in service.token_headers), "a retry adds no second token header"


async def test_a_storm_of_401_gets_one_new_token_and_then_a_pause(
    imds: Imds, service: ImdsDouble, clock: Clock
) -> None:
    service.refusals = 1000
    pauses = []
    for _ in range(12):
        asked, given, slept = len(service.asked), service.tokens_given, sum(clock.slept)
        with pytest.raises(ImdsError, match="refuses a fresh token"):
            await imds.get(ID)
        assert len(service.asked) - asked == 2
        assert service.tokens_given - given <= 2
        pauses.append(sum(clock.slept) - slept)
    assert pauses[0] == 0
    assert pauses[1] < pauses[4] < pauses[-1] <= LONGEST_PAUSE_SECONDS
    service.refusals = 0
    assert await imds.get(ID) == INSTANCE_ID
    before = list(clock.slept)
    assert await imds.get(ID) == INSTANCE_ID
    assert clock.slept == before, "a success ends the pauses"


async def test_callers_that_fail_together_lengthen_the_pause_once(
    imds: Imds, service: ImdsDouble, clock: Clock
) -> None:
    service.status = 500
    results = await asyncio.gather(*(imds.get(ID) for _ in range(8)), return_exceptions=True)
    assert all(isinstance(result, ImdsError) for result in results)
    service.status = None
    assert await imds.get(ID) == INSTANCE_ID
    assert sum(clock.slept) <= 0.5


@pytest.mark.parametrize("status", [500, 502, 503, 301])
async def test_an_answer_that_is_neither_yes_nor_no_is_an_error(imds: Imds, service: ImdsDouble, status: int) -> None:
    await imds.get(ID)
    service.status = status
    with pytest.raises(ImdsError, match=str(status)):
        await imds.get(SPOT)


async def test_the_fourth_identical_error_is_like_the_first(imds: Imds, service: ImdsDouble) -> None:
    service.status = 503
    for _ in range(6):
        with pytest.raises(ImdsError, match="503"):
            await imds.get(SPOT)
    service.status = None
    assert await imds.get(SPOT) is None


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500])
async def test_without_a_token_nothing_is_asked(imds: Imds, service: ImdsDouble, status: int) -> None:
    service.token_status = status
    for _ in range(3):
        with pytest.raises(ImdsDisabled if status == 403 else ImdsAbsent if status < 500 else ImdsError):
            await imds.get(ID)
    assert service.asked == []


@pytest.mark.parametrize("token", ["", "<html>sign in</html>", "a\nb", "é", "x" * 2000])
async def test_a_token_that_can_be_none_is_not_used(imds: Imds, service: ImdsDouble, token: str) -> None:
    service.token = token
    with pytest.raises(ImdsAbsent):
        await imds.get(ID)
    assert service.asked == []


async def test_a_service_that_hangs_is_left_after_the_timeout(
    imds: Imds, service: ImdsDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    await imds.get(ID)
    service.hangs = True
    with pytest.raises(ImdsUnreachable, match="no answer"):
        await imds.get(ID)
    service.hangs = False
    assert await imds.get(ID) == INSTANCE_ID


async def test_a_connection_that_breaks_off_is_an_error(imds: Imds, service: ImdsDouble) -> None:
    service.breaks_off = True
    with pytest.raises(ImdsError):
        await imds.get(ID)


@pytest.mark.parametrize("value", [b"\xff\xfe", b"x" * 300_000])
async def test_what_is_no_text_of_a_sensible_size_is_an_error(imds: Imds, service: ImdsDouble, value: bytes) -> None:
    service.values[ID] = value
    with pytest.raises(ImdsError):
        await imds.get(ID)


async def test_nobody_there_is_said_so(unused_tcp_port: int) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(ImdsUnreachable, match="no connection"):
            await Imds(session, f"http://127.0.0.1:{unused_tcp_port}").get(ID)


async def test_the_address_may_be_of_ipv6() -> None:
    async with ImdsDouble().serving("::1") as service, aiohttp.ClientSession() as session:
        assert await Imds(session, service.url).get(ID) == INSTANCE_ID


async def test_version_1_is_never_used(imds: Imds, service: ImdsDouble) -> None:
    """Whatever happened."""
    for status, token_status, refusals in ((None, 403, 0), (500, None, 0), (None, None, 5), (None, 404, 0)):
        service.status, service.token_status, service.refusals = status, token_status, refusals
        for _ in range(3):
            await asyncio.gather(imds.get(ID), imds.get(SPOT), return_exceptions=True)
            service.expire_tokens()
    assert service.without_token == []
