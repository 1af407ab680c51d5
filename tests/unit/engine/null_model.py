"""Stand-ins for the model runner: one that checks what every request would attend to, one that only counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.scheduler import Scheduler
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.step import ModelOutput, SchedulerOutput
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest, TokenDelta, TokenLogprobs

VOCABULARY = 50
_request_numbers = count()


def extend(prefix: int, token: int) -> int:
    """The fingerprint of a token sequence, one token longer."""
    return hash((prefix, token))


def prefix_of(token_ids: Sequence[int], salt: str = "") -> int:
    prefix = hash(salt)
    for token in token_ids:
        prefix = extend(prefix, token)
    return prefix


def expected_tokens(prompt: Sequence[int], num_tokens: int, salt: str = "") -> list[int]:
    """What `CheckingModel` generates for this prompt, whatever else is in the batch."""
    prefix = prefix_of(prompt, salt)
    tokens = []
    for _ in range(num_tokens):
        tokens.append(prefix % VOCABULARY)
        prefix = extend(prefix, tokens[-1])
    return tokens


@dataclass
class _Row:
    request_id: str
    token_ids: list[int]
    block_ids: list[int]
    num_prompt_tokens: int
    wants_prompt_logprobs: bool
    prefixes: list[int] = field(default_factory=list)  # fingerprint of the first 1, 2, … tokens


class CheckingModel:
    """Writes into each slot the fingerprint of all tokens up to it, and asserts that each request reads back its own.

    The next token is a function of the fingerprint that is read, so wrong sharing also changes the output.
    """

    def __init__(self, num_blocks: int, block_size: int, salts: Mapping[str, str] | None = None) -> None:
        self._memory: list[int | None] = [None] * (num_blocks * block_size)
        self._host: dict[int, list[int | None]] = {}  # by host slot
        self._block_size = block_size
        self._salts = salts if salts is not None else {}
        self._rows: dict[int, _Row] = {}
        self.num_computed = 0

    def execute(self, step: SchedulerOutput, fail: Collection[int] = (), ended: Collection[str] = ()) -> ModelOutput:
        """`fail`: indexes in `step.rows` whose requests fail; `ended`: requests whose outcome is out: behind
        their last token they write garbage, and nobody may read it."""
        self._copy(step)
        self._update_rows(step)
        assert len(set(step.rows)) == len(step.rows)
        assert all(n > 0 for n in step.num_scheduled_tokens)
        work = list(zip(step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True))
        written: set[int] = set()
        for row, computed, scheduled in work:
            state = self._rows[row]
            is_over = state.request_id in ended
            assert is_over or computed + scheduled <= len(state.token_ids), "tokens are scheduled that nobody knows"
            for position in range(computed, computed + scheduled):
                slot = self._slot(state, position)
                assert slot not in written, "two requests write the same slot"
                written.add(slot)
                self._memory[slot] = state.prefixes[position] if position < len(state.prefixes) else None
        output = ModelOutput(sampled=[])
        for i, (row, computed, scheduled) in enumerate(work):
            state = self._rows[row]
            if state.request_id in ended:
                output.sampled.append([])
                continue
            end = computed + scheduled
            for position in range(end):
                assert self._memory[self._slot(state, position)] == state.prefixes[position], (
                    f"{state.request_id} would attend to something else at position {position}"
                )
            self.num_computed += scheduled
            sampled: list[int] = []
            if end == len(state.token_ids):
                sampled = [(self._memory[self._slot(state, end - 1)] or 0) % VOCABULARY]
                self._append_token(state, sampled[0])
            output.sampled.append(sampled)
            if state.wants_prompt_logprobs:
                positions = range(computed + 1, min(end + 1, state.num_prompt_tokens))
                output.prompt_logprobs[i] = [TokenLogprobs([p], [0.0], 1) for p in positions]
            if i in fail:
                output.errors[i] = "made to fail"
        return output

    def forget(self, step: SchedulerOutput) -> None:
        """The step raised: rows are as after it, and what it was to write or copy is garbage."""
        garbage: list[int | None] = [None] * self._block_size
        for _, slot in step.copies_out:
            self._host[slot] = garbage
        for _, block in step.copies_in:
            self._memory[self._of_block(block)] = garbage
        self._update_rows(step)
        for row, computed, scheduled in zip(
            step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True
        ):
            for position in range(computed, computed + scheduled):
                self._memory[self._slot(self._rows[row], position)] = None

    def _copy(self, step: SchedulerOutput) -> None:
        for block, slot in step.copies_out:
            self._host[slot] = self._memory[self._of_block(block)]
        for slot, block in step.copies_in:
            self._memory[self._of_block(block)] = self._host[slot]
        for destinations in ([slot for _, slot in step.copies_out], [block for _, block in step.copies_in]):
            assert len(set(destinations)) == len(destinations), "a step copies to the same place twice"

    def _of_block(self, block: int) -> slice:
        return slice(block * self._block_size, (block + 1) * self._block_size)

    def _update_rows(self, step: SchedulerOutput) -> None:
        for row in step.released_rows:
            self._rows.pop(row, None)
        for new in step.new_rows:
            assert new.row not in self._rows, "a row is taken before its last owner released it"
            state = _Row(new.request_id, [], new.block_ids, new.num_prompt_tokens, new.wants_prompt_logprobs)
            self._rows[new.row] = state
            for token in new.token_ids:
                self._append_token(state, token)
        for row, blocks in step.appended_blocks.items():
            self._rows[row].block_ids += blocks

    def _append_token(self, state: _Row, token: int) -> None:
        salt = self._salts.get(state.request_id, "")
        before = state.prefixes[-1] if state.prefixes else prefix_of([], salt)
        state.token_ids.append(token)
        state.prefixes.append(extend(before, token))

    def _slot(self, state: _Row, position: int) -> int:
        return state.block_ids[position // self._block_size] * self._block_size + position % self._block_size


class CountingModel:
    """Knows how many tokens each row has, and no more: as cheap as a model can be."""

    def __init__(self, max_num_seqs: int) -> None:
        self._num_tokens = [0] * max_num_seqs

    def execute(self, step: SchedulerOutput) -> ModelOutput:
        for new in step.new_rows:
            self._num_tokens[new.row] = len(new.token_ids)
        sampled: list[list[int]] = []
        for row, computed, scheduled in zip(
            step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True
        ):
            if computed + scheduled == self._num_tokens[row]:
                self._num_tokens[row] += 1
                sampled.append([1])
            else:
                sampled.append([])
        return ModelOutput(sampled=sampled)


def make_request(prompt: Sequence[int], *, request_id: str | None = None, **fields: Any) -> AddRequest:
    """Fields of AddRequest are taken by name, all others are sampling parameters; max_tokens is 4 unless given."""
    own = {k: fields.pop(k) for k in ("priority", "key_id", "cache_salt", "trace", "arrival_time") if k in fields}
    own.setdefault("arrival_time", 0.0)
    sampling = SamplingParams(**{"max_tokens": 4, "temperature": 0.0, **fields})
    return AddRequest(request_id or f"request-{next(_request_numbers)}", list(prompt), sampling, **own)


def make_scheduler(
    *, num_blocks: int = 64, block_size: int = 4, caching: bool = True, num_host_blocks: int = 0, **fields: Any
) -> Scheduler:
    extra = {k: fields.pop(k) for k in ("clock", "on_event") if k in fields}
    numbers = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 128, **fields}
    kv_cache = KVCacheManager(num_blocks, block_size, caching, num_host_blocks)
    return Scheduler(SchedulerConfig(**numbers), kv_cache, **extra)


class Harness:
    """A scheduler with a checking model; collects what each request got."""

    def __init__(self, **fields: Any) -> None:
        self.scheduler = make_scheduler(**fields)
        kv_cache = self.scheduler.kv_cache
        self.salts: dict[str, str] = {}
        self.model = CheckingModel(kv_cache.num_blocks, kv_cache.block_size, self.salts)
        self.tokens: dict[str, list[int]] = {}
        self.last: dict[str, TokenDelta] = {}  # the delta with the finish reason
        self.deltas: list[TokenDelta] = []

    def add(self, prompt: Sequence[int], **fields: Any) -> str:
        request = make_request(prompt, **fields)
        self.salts[request.request_id] = request.cache_salt
        self.scheduler.add_request(request)
        self.tokens[request.request_id] = []
        return request.request_id

    def step(self, fail: Collection[int] = ()) -> SchedulerOutput | None:
        output = self.scheduler.schedule()
        if output is not None:
            self.collect(self.scheduler.update(output, self.model.execute(output, fail)))
        return output

    def fail_step(self) -> None:
        output = self.scheduler.schedule()
        if output is not None:
            self.model.forget(output)
            self.collect(self.scheduler.fail_step(output, "the device is gone"))

    def collect(self, deltas: list[TokenDelta]) -> None:
        self.deltas += deltas
        for delta in deltas:
            assert delta.request_id not in self.last, "a delta after the last one"
            self.tokens[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                self.last[delta.request_id] = delta

    def run(self, most_steps: int = 10_000) -> int:
        """Step until nothing is left; returns the number of steps."""
        for done in range(most_steps):
            if not self.scheduler.has_work():
                return done
            assert self.step() is not None, "there is work, but nothing is scheduled"
        raise AssertionError(f"not done after {most_steps} steps")
