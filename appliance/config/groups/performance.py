"""How a step is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.config.declaration import setting

_NO_GRAPHS = "CUDA graphs are not built yet; every step runs eagerly."


@dataclass(frozen=True)
class PerformanceSettings:
    """How a step is executed."""

    enforce_eager: bool = setting(
        False,
        purpose="Run every step operator by operator, without CUDA graphs. It holds on the CPU with or without it, "
        "and, until CUDA graphs are built, on a GPU too.",
        memory="On a GPU saves the graphs' buffers.",
        throughput="On a GPU small batches become slower, as launching kernels is then the limit.",
        typical="Off; on to debug.",
    )
    enable_cuda_graph: bool = setting(
        False,
        purpose="Record decode steps as CUDA graphs at the start and replay them.",
        memory="GPU memory for the buffers of each recorded size.",
        throughput="Faster decoding at small batches, where launching kernels is the limit.",
        typical="Off until it is built.",
        not_built=_NO_GRAPHS,
    )
    max_context_len_to_capture: int | None = setting(
        None,
        purpose="Longest context whose decode steps are replayed as CUDA graphs; longer ones run eagerly.",
        throughput="Contexts beyond it decode slower.",
        typical="Unset.",
        when_unset="max-model-len.",
        minimum=1,
        unit="tokens",
        not_built=_NO_GRAPHS,
    )
    cuda_graph_sizes: tuple[int, ...] = setting(
        (),
        purpose="Batch sizes recorded as CUDA graphs; a batch runs in the smallest that holds it.",
        memory="Each size adds its graph's buffers.",
        throughput="A close fit wastes less padding.",
        typical="Unset.",
        when_unset="1, 2, 4, 8, 16, 24, 32, 48, 64, 96, … up to max-num-seqs.",
        minimum=1,
        not_built=_NO_GRAPHS,
    )
    compilation_config: Mapping[str, Any] | None = setting(
        None,
        purpose="JSON object of options for compiling the model.",
        typical="Unset.",
        when_unset="Nothing is compiled.",
        not_built="Compiling the model is not built yet.",
    )
    attention_backend: Literal["auto", "reference", "triton"] = setting(
        "auto",
        purpose="Which implementation of paged attention runs: auto takes the best that the device has.",
        throughput="triton is the fast one on a GPU; reference is plain PyTorch, which defines what the others must "
        "compute.",
        typical="auto.",
        not_built="There is nothing to choose from yet: only the PyTorch implementation is built, and auto takes it.",
    )
    batch_invariant: bool = setting(
        False,
        purpose="Compute every request with the same order of additions whatever else is in the batch, so that its "
        "logits are the same bit for bit.",
        throughput="Slower, as kernels may not adapt to the batch's shape.",
        typical="Off.",
        not_built="Batch-invariant kernels are not built yet; logits may differ in the last bits with the batch.",
    )
