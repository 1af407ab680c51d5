"""EC2's instance metadata, version 2: session tokens, and no way back to version 1.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import aiohttp

IPV4_ENDPOINT = "http://169.254.169.254"
IPV6_ENDPOINT = "http://[fd00:ec2::254]"
TOKEN_SECONDS = 21600  # the most that EC2 grants
TIMEOUT_SECONDS = 2.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0  # a spot notice may be lost for that long after an outage of the metadata service
MOST_BYTES = 256 * 1024

_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
_TOKEN_HEADER = "X-aws-ec2-metadata-token"
_REFRESH_BEFORE = 0.1  # of a token's life


class ImdsError(Exception):
    """The metadata service gave no usable answer. What it said before still holds, as far as anybody knows."""


class ImdsUnreachable(ImdsError):
    """Nobody answers at that address."""


class ImdsAbsent(ImdsError):
    """What answers at that address is not EC2's metadata service, version 2."""


class ImdsDisabled(ImdsError):
    """The instance's own setting `HttpEndpoint` is off, or a policy denies its use."""


class _Answer(NamedTuple):
    status: int
    text: str
    token_seconds: float  # the life of a token, if this is the answer to a request for one


class Imds:
    """One metadata service. Safe for concurrent use: all callers share a token, and a pause after failures.

    `monotonic` and `sleep` are the clock that tokens expire by and pauses are made with.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: str,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`session` should trust no proxy from the environment: the address is the machine's own."""
        self.endpoint = endpoint.rstrip("/")
        self._session = session
        self._monotonic = monotonic
        self._sleep = sleep
        self._token = ""
        self._refresh_at = 0.0
        self._token_lock = asyncio.Lock()
        self._failures = 0
        self._paused_until = 0.0

    async def get(self, path: str) -> str | None:
        """The text at `path` below `latest/`; None for a 404, which is how EC2 says "there is none".

        Waits first while a pause after earlier failures lasts. Raises ImdsError.
        """
        await self._wait()
        try:
            found = await self._get(path)
        except ImdsError:
            self._failed()
            raise
        self._failures = 0
        return found

    async def _get(self, path: str) -> str | None:
        token = await self._valid_token()
        answer = await self._request("GET", path, {_TOKEN_HEADER: token})
        if answer.status == 401:  # expired or revoked early: once with another one, never in a loop
            token = await self._valid_token(instead_of=token)
            answer = await self._request("GET", path, {_TOKEN_HEADER: token})
        if answer.status == 200:
            return answer.text
        if answer.status == 404:
            return None
        if answer.status == 401:
            self._token = ""
            raise ImdsError(f"the metadata service refuses a fresh token for {path} (401)")
        raise _refusal(answer.status, path)

    async def _valid_token(self, instead_of: str | None = None) -> str:
        async with self._token_lock:  # callers that meet the same expiry fetch one token, not one each
            usable = self._token and self._monotonic() < self._refresh_at
            if usable and self._token != instead_of:
                return self._token
            self._token = ""
            answer = await self._request("PUT", "api/token", {_TTL_HEADER: str(TOKEN_SECONDS)})
            if answer.status != 200:
                raise _refusal(answer.status, "api/token")
            text = answer.text
            # A token goes into a header, so what could not stand in one is somebody else's answer.
            if not text or len(text) > 1024 or not text.isascii() or not text.isprintable() or " " in text:
                raise ImdsAbsent("the answer to the request for a token is none")
            self._token = text
            self._refresh_at = self._monotonic() + answer.token_seconds * (1 - _REFRESH_BEFORE)
            return text

    async def _request(self, method: str, path: str, headers: dict[str, str]) -> _Answer:
        url = f"{self.endpoint}/latest/{path}"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with self._session.request(
                method, url, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                body = await response.content.read(MOST_BYTES + 1)
                while len(body) <= MOST_BYTES and (more := await response.content.read(MOST_BYTES)):
                    body += more
                token_seconds = _seconds(response.headers.get(_TTL_HEADER))
        except TimeoutError as error:
            raise ImdsUnreachable(f"no answer from {self.endpoint} within {TIMEOUT_SECONDS:g} s") from error
        except aiohttp.ClientConnectorError as error:
            raise ImdsUnreachable(f"no connection to {self.endpoint}: {error.strerror or error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise ImdsError(f"the metadata service broke off its answer to {path}: {error}") from error
        if len(body) > MOST_BYTES:
            raise ImdsError(f"the answer to {path} is larger than {MOST_BYTES} bytes")
        try:
            return _Answer(response.status, body.decode(), token_seconds)
        except UnicodeDecodeError as error:
            raise ImdsError(f"the answer to {path} is not text") from error

    async def _wait(self) -> None:
        pause = self._paused_until - self._monotonic()
        if pause > 0:
            await self._sleep(pause)

    def _failed(self) -> None:
        """Callers that fail together count once: the others' failures fall into the pause of the first."""
        now = self._monotonic()
        if now < self._paused_until:
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(self._failures, 10))
        self._failures += 1
        self._paused_until = now + pause * random.uniform(0.5, 1.0)


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdecimal() and 0 < int(text) <= TOKEN_SECONDS else TOKEN_SECONDS


def _refusal(status: int, path: str) -> ImdsError:
    if status == 403:
        return ImdsDisabled(
            "the metadata service is switched off for this instance (403); switch it on with "
            "`aws ec2 modify-instance-metadata-options --http-endpoint enabled`"
        )
    if path == "api/token" and status in (400, 404, 405, 501):
        return ImdsAbsent(f"what answers there knows no session tokens ({status})")
    return ImdsError(f"the metadata service answered {status} to {path}")
