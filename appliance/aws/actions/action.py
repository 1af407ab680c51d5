"""What an action is."""

from __future__ import annotations

from typing import Protocol

from appliance.aws.events import Event


class ActionError(Exception):
    """It did not work now, and is tried again while the event holds. The text is for people."""


class Action(Protocol):
    """One thing to do about an event. May be cancelled at any await, and be asked to do again what it has done."""

    @property
    def name(self) -> str: ...

    @property
    def at_once(self) -> bool:
        """Whether it is done when an event is announced, not only from `Event.act_from` on."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether it is done again when an event has moved that it has already acted on."""
        ...

    async def act(self, event: Event, *, moved: bool) -> str:
        """Returns when it is done, with what `undo` needs to know, or never, if it is to be upheld until the event is
        over. Raises ActionError."""
        ...

    async def undo(self, event: Event, memo: str) -> None:
        """The event is over and the machine still there. `memo` is what `act` returned, empty if it did not. Raises
        ActionError."""
        ...
