"""A decode step from rows to logits, as one function of device memory: what a CUDA graph records."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from appliance.runner.cuda.device_rows import DeviceRows
from appliance.runner.model import Model
from appliance_kernels.device_metadata import DeviceMetadata, SharedPrefix
from appliance_kernels.triton_kernels.attention_configs import decode_config, mixed_config
from appliance_kernels.triton_kernels.attention_decode import DecodeWorkspace, decode_workspace
from appliance_kernels.triton_kernels.attention_shared_prefix import (
    SharedPrefixWorkspace,
    prefix_splits,
    shared_prefix_workspace,
)
from appliance_kernels.triton_kernels.step_inputs import decode_inputs, gather_block_tables


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention's scratch memory depends on."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype  # of queries and logits


class DecodeStep:
    """One token of each request of a batch. The memory that it reads and writes stays in place."""

    def __init__(
        self,
        model: Model,
        kv_caches: list[torch.Tensor],
        rows: DeviceRows,
        *,
        shape: AttentionShape,
        vocab_size: int,
        max_num_seqs: int,
        max_outputs: int,
        batch_invariant: bool,
    ) -> None:
        """`max_outputs` is the number of rows of `logits` and `block_tables`, which mixed steps use as well."""
        device = rows.last_token.device
        self._model = model
        self._kv_caches = kv_caches
        self._rows = rows
        self._shape = shape
        self._block_size = kv_caches[0].shape[3]
        self._device = device
        self.workspace: DecodeWorkspace = decode_workspace(
            max_num_seqs,
            shape.num_q_heads,
            shape.num_kv_heads,
            shape.head_dim,
            decode_config(device, shape.head_dim, kv_caches[0].dtype),
            device,
        )
        self.batch = torch.full((max_num_seqs,), -1, dtype=torch.int32, device=device)  # rows; -1: padding
        self.block_tables = torch.zeros(max_outputs, rows.block_table.shape[1], dtype=torch.int32, device=device)
        self.logits = torch.empty(max_outputs, vocab_size, dtype=shape.dtype, device=device)
        self.num_shared_tokens = torch.zeros(max_num_seqs, dtype=torch.int32, device=device)
        self.shared_table = torch.zeros(rows.block_table.shape[1], dtype=torch.int32, device=device)
        self._input_ids, self._positions, self._slots, self._lengths = torch.zeros(
            4, max_num_seqs, dtype=torch.int32, device=device
        ).unbind()
        self._one_each = torch.arange(max_num_seqs + 1, dtype=torch.int32, device=device) if batch_invariant else None
        self._prefix_workspaces: dict[int, SharedPrefixWorkspace] = {}

    def clear(self) -> None:
        """Make the batch all padding."""
        self.batch.fill_(-1)
        self.num_shared_tokens.zero_()

    def run(self, size: int, *, shares_prefix: bool) -> torch.Tensor:
        """The first `size` entries of `batch`, through the model; returns logits [size, vocab], which stay in place.

        With `shares_prefix`, `num_shared_tokens` [size] and `shared_table` say what is read once for several requests.
        """
        batch, lengths = self.batch[:size], self._lengths[:size]
        ids, positions, slots = self._input_ids[:size], self._positions[:size], self._slots[:size]
        tables = self.block_tables[:size]
        rows = self._rows
        decode_inputs(
            batch, rows.last_token, rows.num_tokens, rows.block_table, self._block_size, ids, positions, slots, lengths
        )
        gather_block_tables(batch, lengths, rows.block_table, self._block_size, tables)
        metadata = DeviceMetadata(
            positions=positions,
            slot_mapping=slots,
            block_tables=tables,
            seq_lens=lengths,
            workspace=self.workspace,
            num_decodes=size,
            shared=self.shared_prefix(size) if shares_prefix else None,
        )
        if self._one_each is not None:
            # the same order of additions in every batch: as prompts are computed
            metadata.num_decodes, metadata.num_continued, metadata.num_continued_tokens = 0, size, size
            metadata.continued_start = self._one_each[: size + 1]
        hidden = self._model(ids, self._kv_caches, metadata, None)
        return self._model.compute_logits(hidden, self.logits[:size])

    def shared_prefix(self, size: int) -> SharedPrefix:
        """What the first `size` entries of the batch share, as `num_shared_tokens` and `shared_table` say it."""
        workspace = self._prefix_workspaces.get(size)
        if workspace is None:
            shape = self._shape
            config = mixed_config(self._device, shape.head_dim, shape.dtype)
            workspace = self._prefix_workspaces[size] = shared_prefix_workspace(
                size,
                shape.num_q_heads,
                shape.num_kv_heads,
                shape.head_dim,
                prefix_splits(size, shape.num_q_heads, shape.num_kv_heads, config, self._device),
                decode_config(self._device, shape.head_dim, self._kv_caches[0].dtype),
                self._device,
            )
        return SharedPrefix(self.shared_table, self.num_shared_tokens[:size], workspace)
