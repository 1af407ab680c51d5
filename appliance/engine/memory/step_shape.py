"""How large a step on a GPU can get: what the settings say, or what they leave to the engine."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config import PerformanceSettings, Settings
from appliance.models.facts import ModelFacts

GPU_BLOCK_SIZE = 16  # tokens: small blocks let more prefixes be shared, and the kernels do not need larger ones
GPU_BATCHED_TOKENS = 8192  # enough for matrix products that fill the GPU
# Below this many requests a shared prefix saves too little to have graphs of its own.
SMALLEST_SHARING_BATCH = 8
# Steps with chunks of prompts are recorded up to the number of tokens whose arithmetic takes as long as launching the
# step from the host, about 15 ms at 600 TFLOP/s: beyond, a graph saves nothing.
MIXED_TOKENS = (64, 256, 512, 1024, 2048)
MIXED_CHUNKS = 16
LAUNCH_BOUND_FLOP = 9e12


@dataclass(frozen=True, slots=True)
class StepShape:
    """The largest step, and the batch sizes whose decode steps are recorded."""

    block_size: int  # tokens
    max_num_seqs: int
    max_num_batched_tokens: int
    graph_sizes: tuple[int, ...]  # ascending; empty without CUDA graphs
    shares_prefix: bool  # batches whose requests begin alike have graphs of their own
    # Steps with chunks are recorded for each of these numbers of decodes and of chunks' tokens, of so many requests.
    mixed_decodes: tuple[int, ...] = ()
    mixed_tokens: tuple[int, ...] = ()
    mixed_chunks: int = 0

    @property
    def sharing_sizes(self) -> tuple[int, ...]:
        """The batch sizes recorded a second time."""
        return tuple(size for size in self.graph_sizes if self.shares_prefix and size >= SMALLEST_SHARING_BATCH)

    @property
    def num_graphs(self) -> int:
        return len(self.graph_sizes) + len(self.sharing_sizes) + len(self.mixed_decodes) * len(self.mixed_tokens)

    @property
    def largest_recorded(self) -> int:
        """Tokens of the largest recorded step."""
        mixed = max(self.mixed_decodes, default=0) + max(self.mixed_tokens, default=0)
        return max(mixed, max(self.graph_sizes, default=0))


def gpu_step_shape(settings: Settings, facts: ModelFacts, max_model_len: int) -> StepShape:
    """The step that an engine on a GPU makes room for; `max_model_len` is the longest that a request may become."""
    scheduling, performance = settings.scheduling, settings.performance
    budget = scheduling.max_num_batched_tokens
    if budget is None:
        budget = max(GPU_BATCHED_TOKENS, scheduling.max_num_seqs)
        if not scheduling.enable_chunked_prefill:
            budget = max(budget, max_model_len)
    graph_sizes = decode_graph_sizes(performance, scheduling.max_num_seqs)
    mixed_tokens: tuple[int, ...] = ()
    if graph_sizes and not performance.batch_invariant:
        most = min(budget, int(LAUNCH_BOUND_FLOP / (2 * facts.num_parameters)))
        mixed_tokens = tuple(size for size in MIXED_TOKENS if size <= most)
    return StepShape(
        block_size=settings.memory.block_size or GPU_BLOCK_SIZE,
        max_num_seqs=scheduling.max_num_seqs,
        max_num_batched_tokens=budget,
        graph_sizes=graph_sizes,
        shares_prefix=settings.memory.enable_prefix_caching and not performance.batch_invariant,
        mixed_decodes=_mixed_decodes(graph_sizes) if mixed_tokens else (),
        mixed_tokens=mixed_tokens,
        mixed_chunks=min(MIXED_CHUNKS, scheduling.max_num_seqs) if mixed_tokens else 0,
    )


def _mixed_decodes(graph_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """None, and about an eighth, a half and all of the largest: the tokens of chunks dwarf what is padded."""
    largest = graph_sizes[-1]
    wanted = (largest // 8, largest // 2, largest)
    return (0, *sorted({min(size for size in graph_sizes if size >= least) for least in wanted}))


def decode_graph_sizes(performance: PerformanceSettings, max_num_seqs: int) -> tuple[int, ...]:
    """The batch sizes recorded as CUDA graphs, ascending; a batch runs in the smallest that holds it.

    By default 1, 2, 4, 8, then in steps that grow with the size, and `max_num_seqs` itself: each costs some tens of
    milliseconds of the start, and a batch that is a little smaller than its graph costs next to nothing.
    """
    if performance.enforce_eager or not performance.enable_cuda_graph:
        return ()
    sizes = performance.cuda_graph_sizes or _default_sizes(max_num_seqs)
    return tuple(sorted({size for size in sizes if size <= max_num_seqs}))


def _default_sizes(max_num_seqs: int) -> tuple[int, ...]:
    return (
        1,
        2,
        4,
        *range(8, 32, 8),
        *range(32, 64, 16),
        *range(64, 256, 32),
        *range(256, max_num_seqs, 64),
        max_num_seqs,
    )
