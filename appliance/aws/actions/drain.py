"""Have the server drain, and see that it stays so while the event holds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from appliance.aws.actions.action import ActionError
from appliance.aws.admin_client import AdminClient, AdminError, DrainStatus
from appliance.aws.events import Event, Kind

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
# So long nobody answers at the admin socket until there is taken to be no server, and so nothing to wait for.
NOBODY_SERVES_SECONDS = 15.0
_SAME = timedelta(seconds=1)  # the server counts by another clock


class Drain:
    """Several events may want a drain: the earliest deadline counts, and the last one that is over cancels it.

    It looks again and again, as a server that is restarted has forgotten its drain.
    """

    name = "drain"
    at_once = False
    repeats = True

    def __init__(
        self,
        admin: AdminClient,
        kinds: Collection[Kind],
        margin_seconds: float,
        *,
        look_seconds: float = LOOK_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`kinds` are those of the events that this action is for; `margin_seconds` end before the deadline."""
        self._admin = admin
        self._kinds = kinds
        self._margin = timedelta(seconds=margin_seconds)
        self._look_seconds = look_seconds
        self._monotonic = monotonic
        self._wanted: dict[str, Event] = {}
        self._asked: datetime | None = None
        self._drained = False
        self._unreachable_since: float | None = None
        self._looked = asyncio.Condition()

    @property
    def is_wanted(self) -> bool:
        return bool(self._wanted)

    def is_over(self, event: Event) -> bool:
        """Nothing is being served any more, as of the last look, or nobody is to drain for such an event."""
        silent = self._unreachable_since
        gone = silent is not None and self._monotonic() - silent >= NOBODY_SERVES_SECONDS
        return event.kind not in self._kinds or (event.identity in self._wanted and (self._drained or gone))

    async def wait_until_over(self, event: Event) -> None:
        async with self._looked:
            await self._looked.wait_for(lambda: self.is_over(event))

    async def act(self, event: Event, *, moved: bool) -> str:
        """Upheld until the event is over: never returns."""
        self._wanted[event.identity] = event
        while True:
            try:
                await self._look()
            except AdminError as error:
                raise ActionError(str(error)) from error
            finally:
                async with self._looked:
                    self._looked.notify_all()
            await asyncio.sleep(self._look_seconds)

    async def undo(self, event: Event, memo: str) -> None:
        if event.identity not in self._wanted:  # a drain that is under way is somebody else's
            return
        try:
            if len(self._wanted) == 1 and (await self._admin.drain_status()).state != "serving":
                await self._admin.cancel_drain()
                log.info("The drain is cancelled: %s is over", event.kind)
        except AdminError as error:
            raise ActionError(str(error)) from error
        del self._wanted[event.identity]  # the next look for the others moves the deadline
        if not self._wanted:
            self._asked, self._drained = None, False

    async def _look(self) -> None:
        try:
            status = await self._admin.drain_status()
            if self._falls_short(status):
                status = await self._ask_for_drain()
        except AdminError:
            if self._unreachable_since is None:
                self._unreachable_since = self._monotonic()
            raise
        self._unreachable_since = None
        self._drained = status.state == "drained"

    def _falls_short(self, status: DrainStatus) -> bool:
        deadline = self._deadline()
        if status.state == "serving":
            return True
        if status.state == "drained" or deadline == self._asked:
            return False
        # Ours moved, or somebody else's drain is under way: an earlier deadline than ours is theirs to set.
        return self._asked is not None or (
            deadline is not None and (status.deadline is None or status.deadline > deadline + _SAME)
        )

    async def _ask_for_drain(self) -> DrainStatus:
        deadline = self._deadline()
        reason = "; ".join(event.summary for event in self._wanted.values())
        status = await self._admin.drain(deadline, reason)
        self._asked = deadline
        log.warning("The server drains: %s", reason)
        return status

    def _deadline(self) -> datetime | None:
        deadlines = [event.deadline for event in self._wanted.values() if event.deadline is not None]
        return min(deadlines) - self._margin if deadlines else None
