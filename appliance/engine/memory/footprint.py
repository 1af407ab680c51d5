"""What an engine takes of a GPU beside its KV cache, from the shapes of model and step.

The live set is the one of `models.causal_lm` and the families beside it, the state that of `runner.cuda`: whoever
changes which tensors are alive at the same time changes the numbers here. Held against what an engine measures by
tests/integration/gpu/test_memory_plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.engine.memory.gpus import Gpu
from appliance.engine.memory.step_shape import StepShape
from appliance.models.facts import ModelFacts

MIB = 2**20

# `[T, hidden]` tensors alive beside a layer's own: the decoder's loop holds output and residual of the layer before,
# and the sum of both is there; in the feed-forward block also what attention made, and its sum.
ATTENTION_STREAM = 3
FEED_FORWARD_STREAM = 5
# Rows of logits at once, at least: prompt log-probabilities take that many.
LOGIT_ROWS = 256
# Edited logits are copied for so many rows at a time, in float32, with what sampling them takes beside.
EDITED_ROWS = 32
EDITED_BYTES = 16
# torch's workspace of cuBLAS, one for each stream that multiplies, from the caching allocator:
# CUBLAS_WORKSPACE_CONFIG :4096:8 on Hopper, :4096:2:16:8 before.
CUBLAS_WORKSPACE_HOPPER = 32 * MIB
CUBLAS_WORKSPACE = 8 * MIB + 128 * 1024
# What the driver keeps for one recorded graph: about a dozen kernels a layer, 5 KiB each.
GRAPH_BYTES_PER_LAYER = 64 * 1024
# What the host tells the device in a step, int32: three numbers a token, some a request, changes of block tables.
STAGED_PER_TOKEN = 3
STAGED_PER_REQUEST = 17
STAGED_BLOCKS = 2 * 65_536
# Split attention: programs on each multiprocessor and what each may have pending, two parts of a request.
DECODE_PROGRAMS = 2
DECODE_PARTS = 2
# Attention to a shared prefix: query rows in a program, and into how many pieces the prefix is cut at most.
PREFIX_ROWS = 128
PREFIX_SPLITS = 16
# With a swap space, blocks on their way to the host and back are gathered in buffers on the device, two a direction.
SWAP_BUFFERS = 4
SWAP_BUFFER_BYTES = 64 * MIB


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


def estimated_footprint(
    facts: ModelFacts, shape: StepShape, gpu: Gpu, itemsize: int, max_model_len: int, swap_bytes: int = 0
) -> Footprint:
    """The footprint by arithmetic.

    `itemsize` is the bytes of an element of weights and activations, `swap_bytes` what a swap space takes of the GPU.
    """
    return Footprint(
        other=gpu.driver_bytes + gpu.other_bytes,
        weights=weight_bytes(facts, itemsize, max_model_len),
        state=state_bytes(facts, shape, gpu, itemsize, max_model_len) + swap_bytes,
        activations=activation_bytes(facts, shape, gpu, itemsize, max_model_len),
        cuda_graphs=graph_bytes(facts, shape, gpu, itemsize),
    )


def weight_bytes(facts: ModelFacts, itemsize: int, max_model_len: int) -> int:
    """All weights, an output head that shares the embedding not counted again, and float32 cosines and sines."""
    return facts.weight_bytes(itemsize) + facts.num_rotary_tables * max_model_len * facts.head_dim * 4


def state_bytes(facts: ModelFacts, shape: StepShape, gpu: Gpu, itemsize: int, max_model_len: int) -> int:
    """Block tables, int32, of all requests and of those in a step; the logits of a decode step; staged inputs."""
    columns = -(-max_model_len // shape.block_size)
    a_place = columns * 4 + facts.vocab_size * itemsize  # in a step
    most_tokens = max(shape.max_num_batched_tokens, shape.largest_recorded)
    staged = STAGED_PER_TOKEN * most_tokens + STAGED_PER_REQUEST * shape.max_num_seqs + STAGED_BLOCKS
    places = shape.max_num_seqs + shape.mixed_chunks
    return places * a_place + shape.max_num_seqs * columns * 4 + staged * 4 + _decode_workspace(facts, gpu)


def swap_buffer_bytes(bytes_per_block: int) -> int:
    """What a swap space takes of the GPU; `bytes_per_block` of the KV cache over all layers."""
    return SWAP_BUFFERS * max(1, SWAP_BUFFER_BYTES // bytes_per_block) * bytes_per_block


def activation_bytes(facts: ModelFacts, shape: StepShape, gpu: Gpu, itemsize: int, max_model_len: int) -> int:
    """The peak of what torch has allocated during the largest step: in its layers, or at its logits."""
    # A row that is full is at its end: its last token is sampled, not computed.
    tokens = min(shape.max_num_batched_tokens, shape.max_num_seqs * (max_model_len - 1))
    rows = max(shape.max_num_seqs, LOGIT_ROWS)
    layers = tokens * layer_bytes_per_token(facts, itemsize)
    hidden = (tokens + rows) * facts.hidden_size * itemsize
    logits = rows * facts.vocab_size * itemsize + EDITED_ROWS * facts.vocab_size * EDITED_BYTES
    return max(layers, hidden + logits) + _cublas_workspace(gpu)


def graph_bytes(facts: ModelFacts, shape: StepShape, gpu: Gpu, itemsize: int) -> int:
    """What recording takes: the largest batch's activations in a pool that all graphs share, and in the cache of the
    stream that it happens on; attention's workspaces for shared prefixes; what the driver keeps of each graph."""
    if not shape.graph_sizes:
        return 0
    pool = 2 * shape.largest_recorded * layer_bytes_per_token(facts, itemsize)
    prefixes = sum(_prefix_workspace(facts, gpu, size) for size in shape.sharing_sizes)
    of_driver = shape.num_graphs * facts.num_layers * GRAPH_BYTES_PER_LAYER
    return pool + _cublas_workspace(gpu) + prefixes + of_driver


def layer_bytes_per_token(facts: ModelFacts, itemsize: int) -> int:
    """At the peak of a layer: where what was projected, attention's output and its projection are there together, or
    where the gated product stands beside gate and up."""
    queries = facts.num_heads * facts.head_dim
    projected = queries + 2 * facts.num_kv_heads * facts.head_dim
    attention = ATTENTION_STREAM * facts.hidden_size + projected + queries + facts.hidden_size
    feed_forward = FEED_FORWARD_STREAM * facts.hidden_size + 3 * facts.intermediate_size
    return max(attention, feed_forward) * itemsize


def _decode_workspace(facts: ModelFacts, gpu: Gpu) -> int:
    """Partial outputs, float32, with their largest score and sum."""
    heads = facts.num_heads // facts.num_kv_heads
    return DECODE_PROGRAMS * gpu.multiprocessors * DECODE_PARTS * heads * (facts.head_dim + 2) * 4


def _prefix_workspace(facts: ModelFacts, gpu: Gpu, batch_size: int) -> int:
    """As many pieces as fill the GPU once, each with the partial outputs of its query rows."""
    rows = min(PREFIX_SPLITS * batch_size * facts.num_heads, gpu.multiprocessors * PREFIX_ROWS)
    return rows * (facts.head_dim + 2) * 4 + _decode_workspace(facts, gpu)


def _cublas_workspace(gpu: Gpu) -> int:
    return CUBLAS_WORKSPACE_HOPPER if gpu.compute_capability >= (9, 0) else CUBLAS_WORKSPACE
