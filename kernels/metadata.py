"""Where each token of one step lives: the only thing that attention needs to know about scheduling."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class AttentionMetadata:
    """T tokens of R requests, flat, request after request (no padding).

    The key and value caches of a layer are `[num_blocks, block_size, num_kv_heads, head_dim]`; slot
    `s` is `cache.view(-1, num_kv_heads, head_dim)[s]`.
    """

    positions: torch.Tensor  # [T] int64, position of each token in its request
    slot_mapping: torch.Tensor  # [T] int64, slot that receives each token's key and value
    block_tables: torch.Tensor  # [R, B] int32, kernel blocks of each request in order; entries past the end are 0
    query_start: list[int]  # [R + 1], prefix sums of the query lengths
    seq_lens: list[int]  # [R], tokens each request attends to: computed before plus scheduled now
    block_size: int  # tokens a kernel block
    num_common_prefix_tokens: int = 0  # leading tokens (a multiple of block_size) whose blocks all R requests share
    plan: object = None  # scratch of the backend: grouping computed once a step, used by every layer

    @property
    def num_requests(self) -> int:
        return len(self.seq_lens)
