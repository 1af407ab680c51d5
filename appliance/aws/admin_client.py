"""The server's admin socket, as the watcher uses it."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from typing import Literal

import aiohttp
import msgspec

from appliance.aws.events import rfc3339

TIMEOUT_SECONDS = 5.0


class DrainStatus(msgspec.Struct):
    """What the server says; it may say more."""

    state: Literal["serving", "draining", "drained"]
    deadline: datetime | None = None
    reason: str | None = None


class AdminError(Exception):
    """The server does not answer, or refuses. The text is for people."""


class AdminRefusal(AdminError):
    def __init__(self, status: int, socket: str, text: str) -> None:
        super().__init__(f"the server answered {status} at {socket}: {text[:200]}")
        self.status = status


class AdminClient:
    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def drain_status(self) -> DrainStatus:
        """Raises AdminError."""
        return await self._ask("GET", None)

    async def drain(self, deadline: datetime | None, reason: str) -> DrainStatus:
        """Drain until `deadline`, the server's own drain-timeout without one; moves a drain that runs."""
        when = None if deadline is None else rfc3339(deadline)
        return await self._ask("POST", {"deadline": when, "reason": reason})

    async def cancel_drain(self) -> None:
        """Serve again. A server that is ending stays as it is. Raises AdminError."""
        try:
            await self._ask("DELETE", None)
        except AdminRefusal as refusal:
            if refusal.status != HTTPStatus.CONFLICT:
                raise

    async def _ask(self, method: str, body: dict[str, object] | None) -> DrainStatus:
        # A connection for each question: the server may have been restarted between two.
        connector = aiohttp.UnixConnector(self._socket)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
                session.request(method, "http://pagebox/admin/drain", json=body) as response,
            ):
                text = await response.text()
                if response.status != HTTPStatus.OK:
                    raise AdminRefusal(response.status, self._socket, text)
                return msgspec.json.decode(text, type=DrainStatus)
        except TimeoutError as error:
            raise AdminError(f"the server does not answer at {self._socket}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise AdminError(f"the server cannot be reached at {self._socket}: {error}") from error
        except msgspec.DecodeError as error:
            raise AdminError(f"the server's answer at {self._socket} is not understood: {error}") from error
