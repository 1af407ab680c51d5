"""A step with chunks of prompts, and decodes beside them, from token ids to logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from appliance.runner.cuda.decode_step import DecodeStep
from appliance.runner.cuda.device_rows import DeviceRows
from appliance.runner.cuda.staging import Staging
from appliance.runner.model import Model
from appliance_kernels.device_metadata import DeviceMetadata
from appliance_kernels.triton_kernels.step_inputs import decode_inputs, gather_block_tables


@dataclass(frozen=True, slots=True)
class MixedShape:
    """How many places of each kind a step has; a recorded step may have more than it needs.

    Its tokens lie in this order: of decoding requests, of chunks that continue what the cache holds, of whole prompts
    (or first chunks), which attend to nothing but themselves.
    """

    decodes: int
    continued: int  # requests
    continued_tokens: int
    fresh: int  # requests
    fresh_tokens: int
    outputs: int  # tokens whose logits are computed

    @property
    def tokens(self) -> int:
        return self.decodes + self.continued_tokens + self.fresh_tokens

    @property
    def requests(self) -> int:
        return self.decodes + self.continued + self.fresh


@dataclass(slots=True)
class MixedInputs:
    """Each a pair: on the host, to be written, and on the device. For a shape they are always at the same place."""

    ids: tuple[np.ndarray, torch.Tensor]  # [T], those of the decodes are found on the device ...
    positions: tuple[np.ndarray, torch.Tensor]  # [T] ... likewise
    slots: tuple[np.ndarray, torch.Tensor]  # [T] ... likewise; negative: padding
    lengths: tuple[np.ndarray, torch.Tensor]  # [R] ... likewise
    rows: tuple[np.ndarray, torch.Tensor]  # [R]; -1: padding
    continued_start: tuple[np.ndarray, torch.Tensor]  # [continued + 1], counted from the first continued token; with
    # batch invariance [decodes + continued + 1], counted from the first token of all
    fresh_start: tuple[np.ndarray, torch.Tensor]  # [fresh + 1], counted from the first token of all
    output_rows: tuple[np.ndarray, torch.Tensor]  # [outputs], tokens
    sampled_rows: tuple[np.ndarray, torch.Tensor]  # [outputs], rows


class MixedStep:
    """Its inputs lie in memory of their own, and so do its logits if they are asked to stay in place."""

    def __init__(
        self,
        model: Model,
        kv_caches: list[torch.Tensor],
        rows: DeviceRows,
        decode_step: DecodeStep,
        *,
        num_slots: int,
        max_tokens: int,
        max_requests: int,
        batch_invariant: bool,
    ) -> None:
        """`num_slots` as in `Staging`. `decode_step` lends its scratch memory: the two never run at once."""
        self._model = model
        self._kv_caches = kv_caches
        self._rows = rows
        self._decode_step = decode_step
        self._batch_invariant = batch_invariant
        self._staging = Staging(3 * max_tokens + 6 * max_requests + 16 * 16, num_slots, rows.last_token.device)

    def begin(self, shape: MixedShape) -> MixedInputs:
        """Where the inputs of the next step go. On the host they are all padding so far."""
        staging = self._staging
        staging.begin()
        inputs = MixedInputs(
            ids=staging.reserve(shape.tokens),
            positions=staging.reserve(shape.tokens),
            slots=staging.reserve(shape.tokens),
            lengths=staging.reserve(shape.requests),
            rows=staging.reserve(shape.requests),
            continued_start=staging.reserve((shape.decodes if self._batch_invariant else 0) + shape.continued + 1),
            fresh_start=staging.reserve(shape.fresh + 1),
            output_rows=staging.reserve(shape.outputs),
            sampled_rows=staging.reserve(shape.outputs),
        )
        starts = inputs.continued_start, inputs.fresh_start
        for host, _ in (inputs.ids, inputs.positions, inputs.lengths, inputs.output_rows, *starts):
            host[:] = 0
        for host, _ in (inputs.slots, inputs.rows, inputs.sampled_rows):
            host[:] = -1
        return inputs

    def send_padding(self, shape: MixedShape) -> None:
        """Put the inputs of a step in place in which nobody takes part."""
        self.begin(shape)
        self.send()

    def send(self) -> None:
        """Copy the inputs to the device."""
        self._staging.send()

    def hidden(self, shape: MixedShape, inputs: MixedInputs, *, all_tokens: bool = False) -> torch.Tensor:
        """Hidden states of the output tokens, or of all: [outputs or T, H]."""
        rows, block_size = self._rows, self._kv_caches[0].shape[3]
        ids, positions, slots = inputs.ids[1], inputs.positions[1], inputs.slots[1]
        lengths, batch = inputs.lengths[1], inputs.rows[1]
        count = shape.decodes
        if count:
            decode_inputs(
                batch[:count],
                rows.last_token,
                rows.num_tokens,
                rows.block_table,
                block_size,
                ids[:count],
                positions[:count],
                slots[:count],
                lengths[:count],
            )
        tables = self._decode_step.block_tables[: shape.requests]
        gather_block_tables(batch, lengths, rows.block_table, block_size, tables)
        metadata = DeviceMetadata(
            positions=positions,
            slot_mapping=slots,
            block_tables=tables,
            seq_lens=lengths,
            num_decodes=count,
            num_continued=shape.continued,
            num_continued_tokens=shape.continued_tokens,
            continued_start=inputs.continued_start[1] if shape.continued else None,
            fresh_start=inputs.fresh_start[1] if shape.fresh else None,
            workspace=self._decode_step.workspace,
        )
        if self._batch_invariant:
            # the same order of additions in every batch: decodes are attended as chunks of one token
            metadata.num_decodes, metadata.num_continued = 0, shape.requests
            metadata.num_continued_tokens = shape.tokens
            metadata.continued_start = inputs.continued_start[1]
        return self._model(ids, self._kv_caches, metadata, None if all_tokens else inputs.output_rows[1])

    def logits(self, shape: MixedShape, inputs: MixedInputs) -> torch.Tensor:
        """Of the output tokens, [outputs, vocab], in the memory of the decode step, so that graphs can hold it."""
        return self._model.compute_logits(self.hidden(shape, inputs), self._decode_step.logits[: shape.outputs])
