"""Decode steps recorded as CUDA graphs: one launch instead of hundreds."""

from __future__ import annotations

import bisect
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from appliance.runner.cuda.decode_step import DecodeStep


class DecodeGraphs:
    """The graphs of a `DecodeStep`, by batch size; a batch runs in the smallest that holds it.

    All record from one memory pool: only one runs at a time, and what a step leaves behind is in memory that the step
    owns itself.
    """

    def __init__(self, step: DecodeStep, sizes: tuple[int, ...], sharing_sizes: tuple[int, ...]) -> None:
        """`sizes` ascending; empty to run everything eagerly. Those in `sharing_sizes` get a second graph, for batches
        whose requests share a prefix."""
        self._step = step
        self._sizes = sizes
        self._sharing_sizes = sharing_sizes
        self._graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(self, progress: Callable[[float], None]) -> None:
        """Record all, the largest first, so that the others fit in its memory. `progress` gets the fraction done."""
        wanted = [(size, False) for size in self._sizes] + [(size, True) for size in self._sharing_sizes]
        wanted.sort(reverse=True)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _without_garbage_collection():
            for done, (size, shares) in enumerate(wanted):
                # Once without recording: libraries choose and load their kernels on first use.
                self._step.run(size, shares_prefix=shares)
                graph = torch.cuda.CUDAGraph()
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    self._step.run(size, shares_prefix=shares)
                finally:
                    graph.capture_end()
                self._graphs[size, shares] = graph
                progress((done + 1) / len(wanted))
        torch.cuda.current_stream().wait_stream(stream)

    def size_for(self, batch: int) -> int | None:
        """The smallest recorded size that holds `batch` requests; None if there is none."""
        place = bisect.bisect_left(self._sizes, batch)
        return self._sizes[place] if place < len(self._sizes) and self._graphs else None

    def has(self, size: int, *, shares_prefix: bool) -> bool:
        return (size, shares_prefix) in self._graphs

    def replay(self, size: int, *, shares_prefix: bool) -> torch.Tensor:
        """`DecodeStep.run`, recorded."""
        self._graphs[size, shares_prefix].replay()
        return self._step.logits[:size]


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
