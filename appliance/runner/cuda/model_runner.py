"""Runs steps on a GPU, up to two at a time: the host prepares and launches one while the device works on the other."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.models.causal_lm import CausalLM
from appliance.protocol.wire import TokenLogprobs
from appliance.runner.block_table import BlockTable
from appliance.runner.cuda.decode_step import DecodeStep
from appliance.runner.cuda.device_rows import DeviceRows, records_of
from appliance.runner.cuda.graphs import Recording, StepGraphs
from appliance.runner.cuda.in_flight import InFlight, Sampled
from appliance.runner.cuda.mixed_step import MixedInputs, MixedShape, MixedStep
from appliance.runner.cuda.options import DecodeKey, RunnerOptions
from appliance.runner.cuda.precompile import compile_kernels
from appliance.runner.cuda.sampler import DeviceSampler, prompt_logprobs
from appliance.runner.cuda.shared_prefix import SharedPrefixFinder, Sharing
from appliance.runner.cuda.staging import Staging
from appliance.runner.host_tier import HostTier
from appliance.runner.model import Model
from appliance.runner.rows import Rows
from appliance_kernels.triton_kernels.step_inputs import RECORD

MOST_UNDER_WAY = 2  # steps: one that the device works on, and one behind it

# Block table entries that are sent at once; a step with more, which prefix hits can make, sends them in pieces first.
STAGED_BLOCKS = 65_536

# Prompt log-probabilities need a row of the vocabulary for every prompt token: that many at a time.
PROMPT_LOGPROBS_CHUNK = 256


@dataclass(slots=True)
class _Batch:
    """The requests of a step. Arrays [R] run in parallel, in the scheduler's order."""

    rows: np.ndarray
    computed: np.ndarray
    scheduled: np.ndarray
    complete: np.ndarray  # whose known tokens end in this step, so that they get another
    wants_prompt: np.ndarray  # log-probabilities of the prompt tokens that this step computes
    decodes: np.ndarray  # complete with one token, which the device knows


class CudaRunner:
    """Executes `SchedulerOutput`s in order, without waiting for the device.

    What a step starts from that the host does not know yet, the tokens sampled by the step before it, is read where the
    device left it. kv_caches: one tensor a layer, [num_kernel_blocks, 2, num_kv_heads, kernel_block_size, head_dim].
    """

    def __init__(
        self,
        model: Model,
        kv_caches: list[torch.Tensor],
        options: RunnerOptions,
        host_tier: HostTier | None = None,
    ) -> None:
        self.options = options
        self.depth = MOST_UNDER_WAY if options.async_scheduling else 1
        self.device = device = kv_caches[0].device
        self._model = model
        self._kv_caches = list(kv_caches)
        self._host_tier = host_tier
        self._on_gpu = device.type == "cuda"
        self._rows = Rows(options.max_num_seqs, options.max_model_len)
        self._tenures = np.zeros(options.max_num_seqs, dtype=np.int64)  # how often each row was taken
        kernel_block_size = kv_caches[0].shape[3]
        self._table = BlockTable(options.max_num_seqs, options.max_model_len, options.block_size, kernel_block_size)
        self._device_rows = DeviceRows(options.max_num_seqs, self._table.shape[1], device)
        self._sampler = DeviceSampler(self._rows, self._device_rows.sampling, device)
        self._sharing = SharedPrefixFinder(self._table)
        self._step = DecodeStep(
            model,
            self._kv_caches,
            self._device_rows,
            shape=options.shape,
            vocab_size=options.vocab_size,
            max_num_seqs=options.max_num_seqs,
            max_outputs=options.max_num_seqs + options.mixed_chunks,
            batch_invariant=options.batch_invariant,
        )
        num_slots = MOST_UNDER_WAY + 1  # one more than may be under way: the host writes while two are read
        self._mixed_step = MixedStep(
            model,
            self._kv_caches,
            self._device_rows,
            self._step,
            num_slots=num_slots,
            max_tokens=max(
                options.max_num_batched_tokens,
                max(options.mixed_decodes, default=0) + max(options.mixed_tokens, default=0),
            ),
            max_requests=options.max_num_seqs + options.mixed_chunks,
            batch_invariant=options.batch_invariant,
        )
        self._graphs = StepGraphs()
        self._staging = Staging(_staged_elements(options), num_slots, device)
        self._results = deque(
            torch.empty(2 * options.max_num_seqs, dtype=torch.int32, pin_memory=self._on_gpu) for _ in range(num_slots)
        )
        self._under_way: deque[InFlight] = deque(maxlen=MOST_UNDER_WAY)
        self._batch_in_place = b""  # the rows that the decode step's memory holds now
        self._sharing_in_place: Sharing | None = None

    def move_in(self, kv_caches: list[torch.Tensor], host_tier: HostTier | None) -> None:
        """Take other caches, of the same layout, before graphs are recorded: their size is known only once a step has
        run."""
        self._kv_caches[:] = kv_caches
        self._host_tier = host_tier

    def compile_kernels(self, model: CausalLM) -> None:
        """Compile what `model`, which is the runner's, needs, many kernels at a time."""
        shares_prefix = bool(self.options.sharing_sizes)
        compile_kernels(model, self._kv_caches, self._device_rows, self._step, shares_prefix=shares_prefix)

    @property
    def num_graphs(self) -> int:
        return len(self._graphs)

    @torch.inference_mode()
    def capture_graphs(self, progress: Callable[[float], None] = lambda fraction: None) -> None:
        """Record steps. Needs all memory to be in place, and no step under way."""
        options, decode, mixed = self.options, self._step, self._mixed_step
        steps = []
        # The largest first: the others fit in its memory.
        for shape in options.recorded_mixes():
            run = functools.partial(mixed.logits, shape, mixed.begin(shape))
            steps.append(Recording(shape, functools.partial(mixed.send_padding, shape), run))
        for size in reversed(options.graph_sizes):
            for shares in (False, True) if size in options.sharing_sizes else (False,):
                run = functools.partial(decode.run, size, shares_prefix=shares)
                steps.append(Recording(DecodeKey(size, shares), decode.clear, run))
        self._graphs.record(steps, progress)
        self._batch_in_place = b""

    @torch.inference_mode()
    def submit(self, step: SchedulerOutput) -> Callable[[], ModelOutput]:
        """Launch `step`; the result waits for it."""
        if self._host_tier is not None:
            self._host_tier.copy_out(step.copies_out)
            self._host_tier.copy_in(step.copies_in)
        self._staging.begin()
        self._update_rows(step)
        batch = self._batch(step)
        in_flight = self._decode(batch) if batch.decodes.all() else self._mixed(batch)
        self._under_way.append(in_flight)

        def outcome() -> ModelOutput:
            in_flight.note_tokens(self._rows, self._tenures)
            return in_flight.output()

        return outcome

    # ---- the persistent batch ----------------------------------------------------------------------------------------

    def _update_rows(self, step: SchedulerOutput) -> None:
        """Bring rows and block tables up to date, here and on the device."""
        for row in step.released_rows:
            self._rows.release(row)
            self._table.clear(row)
        places: list[np.ndarray] = []
        blocks: list[np.ndarray] = []
        for new in step.new_rows:
            self._rows.add(new)
            self._tenures[new.row] += 1
            self._table.clear(new.row)
            self._extend(new.row, new.block_ids, places, blocks)
        for row, block_ids in step.appended_blocks.items():
            self._extend(row, block_ids, places, blocks)
        if not places:
            return
        if step.new_rows:
            self._sharing.rows_changed()
        where, what = np.concatenate(places), np.concatenate(blocks)
        while len(where) > STAGED_BLOCKS:
            self._send_blocks(where[:STAGED_BLOCKS], what[:STAGED_BLOCKS])
            where, what = where[STAGED_BLOCKS:], what[STAGED_BLOCKS:]
            if self._on_gpu:
                torch.cuda.synchronize()
            self._staging.begin()
        staged = self._staging.put(where), self._staging.put(what)
        taken = np.array([new.row for new in step.new_rows], dtype=np.int64)
        records = self._staging.put(records_of(taken, self._rows).reshape(-1)) if len(taken) else None
        self._staging.send()
        self._device_rows.extend_blocks(*staged)
        if records is not None:
            self._device_rows.take(records.view(len(taken), len(RECORD)))

    def _extend(self, row: int, block_ids: list[int], places: list[np.ndarray], blocks: list[np.ndarray]) -> None:
        first, kernel_blocks = self._table.append(row, block_ids)
        start = row * self._table.shape[1] + first
        places.append(np.arange(start, start + len(kernel_blocks)))
        blocks.append(kernel_blocks)

    def _send_blocks(self, places: np.ndarray, blocks: np.ndarray) -> None:
        staged = self._staging.put(places), self._staging.put(blocks)
        self._staging.send()
        self._device_rows.extend_blocks(*staged)

    def _batch(self, step: SchedulerOutput) -> _Batch:
        rows = np.asarray(step.rows, dtype=np.int64)
        computed = np.asarray(step.num_computed_tokens, dtype=np.int64)
        scheduled = np.asarray(step.num_scheduled_tokens, dtype=np.int64)
        complete = computed + scheduled == self._rows.num_tokens[rows]
        wants_prompt = self._rows.num_prompt_logprobs[rows] >= 0
        wants_prompt &= computed + 1 < self._rows.num_prompt_tokens[rows]
        decodes = complete & (scheduled == 1) & ~wants_prompt
        return _Batch(rows, computed, scheduled, complete, wants_prompt, decodes)

    # ---- the forward pass --------------------------------------------------------------------------------------------

    def _decode(self, batch: _Batch) -> InFlight:
        """Every request runs the token that was sampled last."""
        count = len(batch.rows)
        size = self.options.recorded_decode(count)
        if size is None or DecodeKey(size, False) not in self._graphs or self._too_long(batch):
            self._place_batch(batch.rows, count)
            self._step.run(count, shares_prefix=False)
        else:
            self._place_batch(batch.rows, size)
            sharing = self._sharing.find(batch.rows) if size in self.options.sharing_sizes else None
            self._place_sharing(sharing, size)
            self._graphs.replay(DecodeKey(size, sharing is not None))
        return self._sample(batch, self._step.logits[:count], np.arange(count), self._step.batch[:count])

    def _place_batch(self, rows: np.ndarray, size: int) -> None:
        """Tell the decode step its rows, if they are not those of the step before; padded to `size`."""
        padded = np.full(size, -1, dtype=np.int32)
        padded[: len(rows)] = rows
        if padded.tobytes() == self._batch_in_place:
            return
        self._batch_in_place = padded.tobytes()
        self._copy(padded, self._step.batch[:size])

    def _place_sharing(self, sharing: Sharing | None, size: int) -> None:
        if sharing is None or sharing is self._sharing_in_place:
            return
        self._sharing_in_place = sharing
        shared = np.zeros(size, dtype=np.int32)
        shared[: len(sharing.num_tokens)] = sharing.num_tokens
        self._copy(shared, self._step.num_shared_tokens[:size])
        self._step.shared_table.copy_(self._device_rows.block_table[sharing.leader])

    def _copy(self, values: np.ndarray, target: torch.Tensor) -> None:
        staged = self._staging.put(values)
        self._staging.send()
        target.copy_(staged)

    def _mixed(self, batch: _Batch) -> InFlight:
        """Chunks of prompts, and decodes beside them."""
        wants_all = bool(batch.wants_prompt.any())
        invariant = self.options.batch_invariant
        chunked = ~batch.decodes
        num_decodes, num_chunks = int(batch.decodes.sum()), int(chunked.sum())
        num_tokens = int(batch.scheduled[chunked].sum())
        shape = None
        if not (wants_all or invariant or self._too_long(batch)):
            shape = self.options.recorded_mix(num_decodes, num_chunks, num_tokens)
        if shape not in self._graphs:
            shape = None
        # What attends only to itself is attended faster, but for recorded steps, whose size makes up for it.
        fresh = chunked & (batch.computed == 0) & (shape is None and not invariant)
        order = np.concatenate([np.flatnonzero(part) for part in (batch.decodes, chunked & ~fresh, fresh)])
        complete = batch.complete[order]
        recorded = shape is not None
        if shape is None:
            num_fresh, fresh_tokens = int(fresh.sum()), int(batch.scheduled[fresh].sum())
            shape = MixedShape(
                decodes=num_decodes,
                continued=num_chunks - num_fresh,
                continued_tokens=num_tokens - fresh_tokens,
                fresh=num_fresh,
                fresh_tokens=fresh_tokens,
                outputs=int(complete.sum()),
            )
        inputs = self._mixed_step.begin(shape)
        chunk_starts = self._write_inputs(inputs, shape, batch, order, num_decodes)
        self._mixed_step.send()
        places, sampled_rows = order[complete], inputs.sampled_rows[1][: int(complete.sum())]
        prompts: dict[int, list[TokenLogprobs]] = {}
        if recorded:
            self._graphs.replay(shape)
            logits = self._step.logits
        elif wants_all:
            hidden = self._mixed_step.hidden(shape, inputs, all_tokens=True)
            prompts = self._prompt_logprobs(hidden, batch, order, chunk_starts)
            logits = self._model.compute_logits(hidden.index_select(0, inputs.output_rows[1]))
        else:
            logits = self._mixed_step.logits(shape, inputs)
        if not len(places):
            return InFlight(len(order), self._record(), None, prompts)
        in_flight = self._sample(batch, logits[: len(places)], places, sampled_rows)
        in_flight.prompt_logprobs = prompts
        return in_flight

    def _write_inputs(
        self, inputs: MixedInputs, shape: MixedShape, batch: _Batch, order: np.ndarray, num_decodes: int
    ) -> np.ndarray:
        """Fill the host's side of `inputs`; what `shape` has beyond the batch stays padding.

        `order` [R] are places in `batch`, decodes first. Returns where each chunk begins among the tokens.
        """
        rows, computed, scheduled = batch.rows[order], batch.computed[order], batch.scheduled[order]
        chunk_rows, chunk_computed, chunks = rows[num_decodes:], computed[num_decodes:], scheduled[num_decodes:]
        starts = np.concatenate(([0], np.cumsum(chunks)))
        of_token = np.repeat(chunk_rows, chunks)
        positions = np.arange(starts[-1]) - np.repeat(starts[:-1] - chunk_computed, chunks)
        first, end = shape.decodes, shape.decodes + int(starts[-1])  # of the chunks' tokens
        inputs.ids[0][first:end] = self._rows.token_ids[of_token, positions]
        inputs.positions[0][first:end] = positions
        inputs.slots[0][first:end] = self._table.slots(of_token, positions)
        inputs.rows[0][:num_decodes] = rows[:num_decodes]
        inputs.rows[0][first : first + len(chunks)] = chunk_rows
        inputs.lengths[0][first : first + len(chunks)] = chunk_computed + chunks
        continued = inputs.continued_start[0]
        if self.options.batch_invariant:
            continued[:] = np.append(np.arange(num_decodes), num_decodes + starts)
        else:
            count = min(shape.continued, len(chunks))
            continued[:] = starts[count]
            continued[:count] = starts[:count]
            inputs.fresh_start[0][:] = first + starts[len(chunks) - shape.fresh :]
        complete = batch.complete[order]
        ends = np.concatenate((np.arange(num_decodes), first + starts[1:] - 1))[complete]
        inputs.output_rows[0][: len(ends)] = ends
        inputs.sampled_rows[0][: len(ends)] = rows[complete]
        return first + starts[:-1]

    def _too_long(self, batch: _Batch) -> bool:
        limit = self.options.max_context_len_to_capture
        return limit is not None and int((batch.computed + batch.scheduled).max()) > limit

    # ---- tokens ------------------------------------------------------------------------------------------------------

    def _sample(self, batch: _Batch, logits: torch.Tensor, places: np.ndarray, device_rows: torch.Tensor) -> InFlight:
        """The next token of the requests at `places` [N] of `batch`, whose rows on the device are `device_rows` [N]."""
        rows = batch.rows[places]
        if self._sampler.needs_host_tokens(rows):
            # The forward pass is under way by now, so the device has work while the host waits for the last tokens.
            for earlier in self._under_way:
                earlier.note_tokens(self._rows, self._tenures)
        samples = self._sampler.sample(logits, rows, device_rows)
        self._device_rows.append(device_rows, samples.tokens_and_status[0])
        positions = self._rows.num_tokens[rows]
        self._rows.num_tokens[rows] += 1
        self._results.rotate()
        result = self._results[0][: 2 * len(rows)].view(2, len(rows))
        result.copy_(samples.tokens_and_status, non_blocking=True)
        sampled = Sampled(places, rows, positions, self._tenures[rows], samples, result)
        return InFlight(len(batch.rows), self._record(), sampled)

    def _record(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        done = torch.cuda.Event()
        done.record()
        return done

    def _prompt_logprobs(
        self, hidden: torch.Tensor, batch: _Batch, order: np.ndarray, chunk_starts: np.ndarray
    ) -> dict[int, list[TokenLogprobs]]:
        """By place in the step. Waits for the device. The chunks are the last of `order` [R], places in `batch`.

        The token at position p is predicted at position p - 1, so the last prompt position predicts none of it.
        """
        found: dict[int, list[TokenLogprobs]] = {}
        for place, chunk_start in zip(order[-len(chunk_starts) :].tolist(), chunk_starts.tolist(), strict=True):
            if not batch.wants_prompt[place]:
                continue
            row, first = int(batch.rows[place]), int(batch.computed[place]) + 1
            end = min(first + int(batch.scheduled[place]), int(self._rows.num_prompt_tokens[row]))
            for begin in range(first, end, PROMPT_LOGPROBS_CHUNK):
                count = min(PROMPT_LOGPROBS_CHUNK, end - begin)
                start = chunk_start + begin - first
                logits = self._model.compute_logits(hidden[start : start + count])
                tokens = torch.from_numpy(self._rows.token_ids[row, begin : begin + count]).to(hidden.device)
                found.setdefault(place, []).extend(
                    prompt_logprobs(logits, tokens, int(self._rows.num_prompt_logprobs[row]))
                )
        return found


def _staged_elements(options: RunnerOptions) -> int:
    """What changes of rows and block tables in a step, a decode step's batch, and what aligning the parts takes."""
    return 2 * STAGED_BLOCKS + (len(RECORD) + 2) * options.max_num_seqs + 16 * 16
