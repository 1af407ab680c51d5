"""What a monitor is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from appliance.aws.events import Event


class MonitorError(Exception):
    """The source gave no usable answer: nothing is known to have changed. The text is for people."""


class Monitor(Protocol):
    """Looks at one source. It keeps no memory of what it announced before: `EventStore` does."""

    @property
    def name(self) -> str: ...

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        ...

    @property
    def can_end(self) -> bool:
        """Whether an event that `poll` no longer names is over. Else `poll` names each only when it is found."""
        ...

    async def poll(self) -> Sequence[Event]:
        """Raises MonitorError, or ImdsError."""
        ...
