"""The one drain state of a server: serving → draining (until a deadline, for a reason) → drained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

State = Literal["serving", "draining", "drained"]


class DrainIsFinal(Exception):
    """A process that was told to end does not serve again. The text is for people."""


@dataclass(slots=True)
class DrainState:
    """Deadlines are seconds of one clock, whichever. Whoever asks for a drain again moves its deadline."""

    state: State = "serving"
    deadline: float | None = None
    reason: str | None = None
    terminating: bool = False  # the process ends once it is drained
    _latest: float = math.inf  # no deadline goes beyond

    def drain(self, deadline: float, reason: str) -> bool:
        """Whether that changed anything: a drain that is over stays over."""
        deadline = min(deadline, self._latest)
        if self.state == "drained" or (self.state, self.deadline, self.reason) == ("draining", deadline, reason):
            return False
        self.state, self.deadline, self.reason = "draining", deadline, reason
        return True

    def terminate(self, now: float, seconds: float, reason: str) -> None:
        """The process shall end: after `seconds` at the latest, at once if it is told so again."""
        self._latest = now if self.terminating else now + seconds
        self.terminating = True
        if self.state == "serving":
            self.drain(self._latest, reason)
        elif self.state == "draining" and self.deadline is not None:
            self.deadline = min(self.deadline, self._latest)

    def cancel(self) -> bool:
        """Serve again; False if it does. Raises `DrainIsFinal`."""
        if self.terminating:
            raise DrainIsFinal("The server is ending, as it was told by a signal; it does not serve again.")
        was, self.state = self.state, "serving"
        self.deadline = self.reason = None
        return was != "serving"

    def finish(self) -> None:
        """Nothing runs any more."""
        if self.state == "draining":
            self.state = "drained"
