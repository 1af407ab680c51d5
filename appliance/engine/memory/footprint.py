"""What an engine takes of a GPU beside its KV cache, from the shapes of model and step.

The live set is the one of `models.causal_lm` and the families beside it: whoever changes which tensors are alive at the
same time changes the constants here. Held against the measured numbers by tests/integration/gpu/test_memory_plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.engine.memory.gpus import Gpu
from appliance.engine.memory.step_shape import StepShape
from appliance.models.facts import ModelFacts

MIB = 2**20

# `[T, hidden]` tensors alive while a layer's block runs: the decoder's loop holds output and residual of the layer
# before, the layer holds what its norm made of them.
STREAM_TENSORS = 4
# Bytes a token of a step: token id, position, slot, its block and its offset, int64 each.
INPUT_BYTES = 5 * 8
# `[N, vocab]` tensors alive while sampling: the logits, and those that log-probabilities are computed from.
LOGIT_TENSORS = 2
# Rows of logits at once, at least: prompt log-probabilities take that many (runner.model_runner).
LOGIT_ROWS = 256
# torch's default workspaces of cuBLAS, one for each stream that multiplies, from the caching allocator:
# CUBLAS_WORKSPACE_CONFIG :4096:8 on Hopper, :4096:2:16:8 before.
CUBLAS_WORKSPACE_HOPPER = 32 * MIB
CUBLAS_WORKSPACE = 8 * MIB + 128 * 1024
# What the driver keeps for one recorded graph: about a dozen kernels a layer, 5 KiB each.
GRAPH_BYTES_PER_LAYER = 64 * 1024
# Partial results of split attention: two programs a multiprocessor, or, with a shared prefix, pieces that fill it once.
ATTENTION_WORKSPACE = 16 * MIB


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of a GPU that are not for the KV cache."""

    other: int  # driver, its modules, and other programs: all that torch's allocator does not know of
    weights: int  # and the rotary tables, which are made with them
    state: int  # what the runner keeps of each request on the device, and its buffers
    activations: int  # at the peak of the largest step
    cuda_graphs: int

    @property
    def total(self) -> int:
        return self.other + self.weights + self.state + self.activations + self.cuda_graphs


def estimated_footprint(facts: ModelFacts, shape: StepShape, gpu: Gpu, itemsize: int, max_model_len: int) -> Footprint:
    """The footprint by arithmetic. `itemsize` is the bytes of an element of weights and activations."""
    return Footprint(
        other=gpu.driver_bytes + gpu.other_bytes,
        weights=weight_bytes(facts, itemsize, max_model_len),
        state=state_bytes(shape, max_model_len),
        activations=activation_bytes(facts, shape, itemsize, gpu.compute_capability),
        cuda_graphs=graph_bytes(facts, shape, itemsize, gpu.compute_capability),
    )


def weight_bytes(facts: ModelFacts, itemsize: int, max_model_len: int) -> int:
    """All weights, an output head that shares the embedding not counted again, and float32 cosines and sines."""
    return facts.weight_bytes(itemsize) + facts.num_rotary_tables * max_model_len * facts.head_dim * 4


def state_bytes(shape: StepShape, max_model_len: int) -> int:
    """Token ids and block tables, int32, one row a request and one for padding; inputs; attention's workspace."""
    columns = max_model_len + -(-max_model_len // shape.block_size)
    return (shape.max_num_seqs + 1) * columns * 4 + shape.max_num_batched_tokens * INPUT_BYTES + ATTENTION_WORKSPACE


def activation_bytes(facts: ModelFacts, shape: StepShape, itemsize: int, compute_capability: tuple[int, int]) -> int:
    """The peak of what torch has allocated during the largest step: in its layers, or at its logits."""
    tokens, hidden = shape.max_num_batched_tokens, facts.hidden_size * itemsize
    layers = tokens * _layer_bytes_per_token(facts, itemsize)
    logits = _logit_bytes(facts, max(shape.max_num_seqs, LOGIT_ROWS), itemsize) + tokens * hidden
    return max(layers, logits) + _cublas_workspace(compute_capability)


def graph_bytes(facts: ModelFacts, shape: StepShape, itemsize: int, compute_capability: tuple[int, int]) -> int:
    """All graphs share one pool, as large as the largest batch's needs; each costs the driver something besides."""
    if not shape.graph_sizes:
        return 0
    largest = shape.graph_sizes[-1]
    pool = largest * _layer_bytes_per_token(facts, itemsize) + _logit_bytes(facts, largest, itemsize)
    of_driver = len(shape.graph_sizes) * facts.num_layers * GRAPH_BYTES_PER_LAYER
    return pool + _cublas_workspace(compute_capability) + of_driver


def _layer_bytes_per_token(facts: ModelFacts, itemsize: int) -> int:
    """At the peak of a layer: where attention has its queries and output beside what was projected, or where the
    gated product stands beside gate and up."""
    queries = facts.num_heads * facts.head_dim
    projected = queries + 2 * facts.num_kv_heads * facts.head_dim
    attention = projected + 2 * queries
    feed_forward = 3 * facts.intermediate_size
    rotary_rows = facts.num_rotary_tables * facts.head_dim
    elements = STREAM_TENSORS * facts.hidden_size + max(attention, feed_forward) + rotary_rows
    return elements * itemsize


def _logit_bytes(facts: ModelFacts, rows: int, itemsize: int) -> int:
    return rows * (LOGIT_TENSORS * facts.vocab_size + facts.hidden_size) * itemsize


def _cublas_workspace(compute_capability: tuple[int, int]) -> int:
    return CUBLAS_WORKSPACE_HOPPER if compute_capability >= (9, 0) else CUBLAS_WORKSPACE
