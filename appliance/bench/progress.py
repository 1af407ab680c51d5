"""Progress of a benchmark on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts finished requests, failed ones and generated tokens. `with Progress(…) as progress:`."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = self._failed = self._tokens = 0
        self._began = self._last_line = time.perf_counter()
        self._bar: Any = tqdm(total=total, desc="Requests", unit="request", dynamic_ncols=True, disable=None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def finished(self, tokens: int, failed: bool) -> None:
        """One more request is over."""
        self._done += 1
        self._failed += failed
        self._tokens += tokens
        now = time.perf_counter()
        state = f"{self._tokens / max(now - self._began, 1e-9):.0f} tokens/s"
        if self._failed:
            state += f", {self._failed} failed"
        self._bar.set_postfix_str(state, refresh=False)
        self._bar.update(1)
        due = now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total
        if self._bar.disable and due:
            self._last_line = now
            print(f"{self._done} of {self._total} requests, {state}", file=sys.stderr, flush=True)
