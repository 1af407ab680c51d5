"""The progress bars of the offline `LLM`: on a terminal only, on standard error."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

from appliance.protocol.wire import Phase


class LoadingBar:
    """Told of each phase of the start; shows how much of the weights has been read."""

    def __init__(self) -> None:
        self._bar: Any = tqdm(
            total=1.0, disable=None, leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
        )

    def __call__(self, phase: Phase, detail: str = "", progress: float | None = None) -> None:
        self._bar.set_description_str(detail or phase, refresh=False)
        if progress is not None:
            self._bar.n = progress
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


class GenerationBar:
    """Counts finished prompts and shows the rate of generated tokens."""

    def __init__(self, total: int, *, show: bool) -> None:
        self._bar: Any = tqdm(
            total=total, desc="Prompts", unit="prompt", disable=None if show else True, dynamic_ncols=True
        )
        self._tokens = 0
        self._began = time.perf_counter()

    def __enter__(self) -> GenerationBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add_tokens(self, count: int) -> None:
        self._tokens += count

    def prompt_finished(self) -> None:
        rate = self._tokens / max(time.perf_counter() - self._began, 1e-9)
        self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        self._bar.update(1)
