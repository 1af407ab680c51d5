"""What a runner is built for: how large its steps are, and which of them are recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from appliance.runner.cuda.decode_step import AttentionShape
from appliance.runner.cuda.mixed_step import MixedShape


class DecodeKey(NamedTuple):
    """Which recorded decode step."""

    size: int
    shares_prefix: bool


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """Named as the settings are, where there is one."""

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    block_size: int
    vocab_size: int
    shape: AttentionShape
    graph_sizes: tuple[int, ...] = ()  # ascending; empty: everything runs eagerly
    sharing_sizes: tuple[int, ...] = ()  # of them, those with a second graph for requests that share a prefix
    # Steps with chunks of prompts are recorded for each of these numbers of decodes and of chunks' tokens, ascending.
    mixed_decodes: tuple[int, ...] = ()
    mixed_tokens: tuple[int, ...] = ()
    mixed_chunks: int = 0  # requests with a chunk in such a step, at most
    max_context_len_to_capture: int | None = None  # tokens; longer contexts run eagerly
    batch_invariant: bool = False
    async_scheduling: bool = True  # the next step is prepared and launched while one runs

    def recorded_decode(self, batch: int) -> int | None:
        """The smallest recorded size that holds a batch; None when it runs eagerly."""
        return next((size for size in self.graph_sizes if size >= batch), None)

    def recorded_mix(self, num_decodes: int, num_chunks: int, num_tokens: int) -> MixedShape | None:
        """The smallest recorded step that holds so many decodes, and chunks with so many tokens."""
        decodes = next((size for size in self.mixed_decodes if size >= num_decodes), None)
        tokens = next((size for size in self.mixed_tokens if size >= num_tokens), None)
        if decodes is None or tokens is None or num_chunks > self.mixed_chunks:
            return None
        return self._mix(decodes, tokens)

    def recorded_mixes(self) -> list[MixedShape]:
        """All of them, the largest first."""
        return [self._mix(d, t) for t in reversed(self.mixed_tokens) for d in reversed(self.mixed_decodes)]

    def _mix(self, decodes: int, tokens: int) -> MixedShape:
        """In a recorded step every chunk continues something: it may be nothing."""
        chunks = self.mixed_chunks
        return MixedShape(decodes, chunks, tokens, fresh=0, fresh_tokens=0, outputs=decodes + chunks)
