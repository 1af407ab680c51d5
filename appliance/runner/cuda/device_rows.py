"""The persistent batch on the device: what a step needs of each request that it goes on with."""

from __future__ import annotations

import numpy as np
import torch

from appliance.runner.rows import Rows
from appliance_kernels.triton_kernels.draws import SamplingRows
from appliance_kernels.triton_kernels.step_inputs import RECORD, append_tokens, write_blocks, write_rows


class DeviceRows:
    """Tensors with one row a request; never reallocated, so graphs may hold them."""

    def __init__(self, max_num_seqs: int, columns: int, device: torch.device) -> None:
        """`columns`: kernel blocks of the longest context."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.last_token = zeros(max_num_seqs)
        self.num_tokens = zeros(max_num_seqs)  # known or sampled
        self.block_table = zeros(max_num_seqs, columns)
        self.sampling = SamplingRows(
            temperature=zeros(max_num_seqs, dtype=torch.float32),
            top_k=zeros(max_num_seqs),
            top_p=zeros(max_num_seqs, dtype=torch.float32),
            min_p=zeros(max_num_seqs, dtype=torch.float32),
            seed=zeros(max_num_seqs, dtype=torch.int64),
            num_tokens=self.num_tokens,
        )

    def take(self, records: torch.Tensor) -> None:
        """Requests take rows; `records` [N, …] as `records_of` makes them."""
        params = self.sampling
        write_rows(
            records,
            self.last_token,
            self.num_tokens,
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.seed,
        )

    def extend_blocks(self, places: torch.Tensor, blocks: torch.Tensor) -> None:
        """Block table entries [N] at `places` [N], which count through all rows."""
        write_blocks(places, blocks, self.block_table)

    def append(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        """The sampled token [N] of each of `rows` [N]."""
        append_tokens(rows, tokens, self.last_token, self.num_tokens)


def records_of(rows: np.ndarray, batch: Rows) -> np.ndarray:
    """What the device is told of `rows` [N] when requests take them: [N, len(RECORD)] int32."""
    records = np.empty((len(rows), len(RECORD)), dtype=np.int32)
    length = batch.num_tokens[rows]
    seed = batch.seed[rows]
    columns = {
        "row": rows,
        "num_tokens": length,
        "last_token": batch.token_ids[rows, length - 1],
        "temperature": batch.temperature[rows].view(np.int32),
        "top_k": np.minimum(batch.top_k[rows], np.iinfo(np.int32).max),
        "top_p": batch.top_p[rows].view(np.int32),
        "min_p": batch.min_p[rows].view(np.int32),
        "seed_low": (seed & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32),
        "seed_high": (seed >> np.uint64(32)).astype(np.uint32).view(np.int32),
    }
    for i, name in enumerate(RECORD):
        records[:, i] = columns[name]
    return records
