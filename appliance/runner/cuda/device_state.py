"""What the device remembers of each request from admission to finish. It takes diffs; a decode step needs none."""

from __future__ import annotations

import torch


class DeviceState:
    """Persistent tensors, one row a request and one more, `padding_row`, that stands for no request: it has no tokens.

    Captured graphs read and write them, so they are never reallocated.
    """

    def __init__(self, max_num_seqs: int, table_columns: int, device: torch.device) -> None:
        rows = max_num_seqs + 1
        self.padding_row = max_num_seqs
        self.last_token = torch.zeros(rows, dtype=torch.int64, device=device)  # the newest known or sampled token
        self.num_tokens = torch.zeros(rows, dtype=torch.int32, device=device)  # known or sampled
        self.block_table = torch.zeros(rows, table_columns, dtype=torch.int32, device=device)  # kernel blocks
        self.temperature = torch.zeros(rows, dtype=torch.float32, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.int32, device=device)
        self.top_p = torch.ones(rows, dtype=torch.float32, device=device)
        self.min_p = torch.zeros(rows, dtype=torch.float32, device=device)
        self.seed = torch.zeros(rows, dtype=torch.int64, device=device)

    def write_rows(
        self,
        rows: torch.Tensor,
        last_token: torch.Tensor,
        num_tokens: torch.Tensor,
        floats: torch.Tensor,
        top_k: torch.Tensor,
        seeds: torch.Tensor,
    ) -> None:
        """New requests take `rows` [N] int32. `floats` [3 * N] is temperatures, top-p, min-p as int32 bits; `seeds`
        [2 * N] the 64-bit seeds as int32 pairs; the others [N] int32."""
        index = rows.long()
        self.last_token[index] = last_token.long()
        self.num_tokens[index] = num_tokens
        temperature, top_p, min_p = floats.view(torch.float32).view(3, -1)
        self.temperature[index] = temperature
        self.top_p[index] = top_p
        self.min_p[index] = min_p
        self.top_k[index] = top_k
        self.seed[index] = seeds.view(torch.int64)

    def write_blocks(self, places: torch.Tensor, blocks: torch.Tensor) -> None:
        """`places` [N] int32 are flat indices into the block table, `blocks` [N] int32 what to put there."""
        self.block_table.view(-1)[places.long()] = blocks
