"""How a step is executed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.config.declaration import setting


@dataclass(frozen=True)
class PerformanceSettings:
    """How a step is executed."""

    enforce_eager: bool = setting(
        False,
        purpose="Run every step operator by operator, without CUDA graphs. On a CPU there are none, and every step "
        "runs so with or without it.",
        memory="On a GPU saves the graphs' buffers.",
        throughput="On a GPU small batches become slower, as launching kernels is then the limit; the start is faster.",
        typical="Off; on to debug.",
    )
    enable_cuda_graph: bool = setting(
        True,
        purpose="On a GPU, record decode steps as CUDA graphs at the start and replay them. Steps that hold part of a "
        "prompt run eagerly either way. Off is the same as enforce-eager.",
        memory="GPU memory for the buffers of the recorded sizes; the memory ledger at the start says how much.",
        throughput="Faster decoding at small batches, where launching kernels is the limit.",
        typical="On.",
    )
    max_context_len_to_capture: int | None = setting(
        None,
        purpose="Longest context whose decode steps are replayed as CUDA graphs: a step with a longer one runs "
        "eagerly. A graph serves contexts of every length, so there is no need for a limit.",
        throughput="Steps with contexts beyond it decode slower.",
        typical="Unset.",
        when_unset="No limit.",
        minimum=1,
        unit="tokens",
    )
    cuda_graph_sizes: tuple[int, ...] = setting(
        (),
        purpose="Batch sizes recorded as CUDA graphs; a decode step runs in the smallest that holds it, and eagerly if "
        "none does.",
        memory="Each size adds its graph; they share the buffers of the largest.",
        throughput="A close fit wastes less padding; each size adds to the time of the start.",
        typical="Unset.",
        when_unset="1, 2, 4, 8, 16, 24, 32, 48, 64, 96, … up to max-num-seqs.",
        minimum=1,
    )
    compilation_config: Mapping[str, Any] | None = setting(
        None,
        purpose="JSON object of options for compiling the model.",
        typical="Unset.",
        when_unset="Nothing is compiled.",
        not_built="Compiling the model is not built: its kernels are written for it, and CUDA graphs launch them.",
    )
    attention_backend: Literal["auto", "reference", "triton"] = setting(
        "auto",
        purpose="Which implementation of paged attention runs: auto takes the best that the device has.",
        throughput="triton is the fast one on a GPU; reference is plain PyTorch, which defines what the others must "
        "compute.",
        typical="auto.",
        not_built="There is nothing to choose from yet: a GPU has Triton's, a CPU PyTorch's, and auto takes it.",
    )
    batch_invariant: bool = setting(
        False,
        purpose="Compute every request with the same order of additions whatever else is in the batch, so that its "
        "logits are the same bit for bit: alone or among others, its prompt in one step or in chunks, found in the "
        "prefix cache or computed again. Needs a GPU; the same bits are to be expected only of the same kind of GPU.",
        throughput="Slower: matrix products with one order of additions for every batch in place of cuBLAS, attention "
        "that reads a context in one piece, which shows most with few requests of long contexts, and no sharing of "
        "the reads of a common prefix.",
        typical="Off; on for reproducible evaluations.",
    )
