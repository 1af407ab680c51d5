"""Where each token of one step lives: the only thing that attention needs to know about scheduling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(slots=True)
class AttentionMetadata:
    """T tokens of R requests, flat, request after request (no padding).

    The cache of a layer is `[num_blocks, 2, num_kv_heads, block_size, head_dim]`, keys then values: what one head
    reads of one block is contiguous, and a token at slot `s` lies in block `s // block_size` at offset
    `s % block_size`.
    """

    positions: torch.Tensor  # [T] int64, position of each token in its request
    slot_mapping: torch.Tensor  # [T] int64, slot that receives each token's key and value
    block_tables: torch.Tensor  # [R, B] int32, kernel blocks of each request in order; entries past the end are 0
    query_start: list[int]  # [R + 1], prefix sums of the query lengths
    seq_lens: list[int]  # [R], tokens each request attends to: computed before plus scheduled now
    block_size: int  # tokens a kernel block
    slot_blocks: torch.Tensor = field(init=False)  # [T] int64, slot_mapping // block_size ...
    slot_offsets: torch.Tensor = field(init=False)  # ... and the rest: found once a step, not once a layer
    plans: dict[int | None, Any] = field(
        default_factory=dict
    )  # the backend's grouping by sliding window, made once a step

    def __post_init__(self) -> None:
        self.slot_blocks = self.slot_mapping // self.block_size
        self.slot_offsets = self.slot_mapping % self.block_size

    @property
    def num_requests(self) -> int:
        return len(self.seq_lens)
