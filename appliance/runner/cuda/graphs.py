"""Steps recorded as CUDA graphs: one launch instead of hundreds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Recording:
    """A step to be recorded."""

    key: Hashable
    prepare: Callable[[], object]  # puts inputs in place, which is not recorded
    run: Callable[[], object]


class StepGraphs:
    """Recorded steps, by a key that says which.

    All record from one memory pool: only one runs at a time, and what a step leaves behind is in memory that the step
    owns itself.
    """

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def record(self, steps: Sequence[Recording], progress: Callable[[float], None]) -> None:
        """Record `steps`, best the one that needs most memory first. `progress` gets the fraction done."""
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _without_garbage_collection():
            for done, step in enumerate(steps):
                step.prepare()
                step.run()  # without recording: libraries choose and load their kernels on first use
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    step.run()
                finally:
                    graph.capture_end()
                self._graphs[step.key] = graph
                progress((done + 1) / len(steps))
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self, key: Hashable) -> None:
        """Run a recorded step."""
        self._graphs[key].replay()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection that frees a graph or device memory would break the recording."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
