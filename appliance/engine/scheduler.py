"""Decides, step by step, which tokens of which requests are computed, and what becomes of the sampled ones.

The rule (see docs/architecture.md): `num_computed_tokens` chases `num_tokens` under one token budget a step. Running
requests come first, then waiting ones. A decode is a chunk of one token, a prefill a longer chunk.

Memory: a request is admitted only when all its known tokens fit beside what the running ones are about to need. If the
blocks run out all the same, the running request of the greatest rank gives its blocks up and is computed again later;
nothing is admitted in that step. The request of the least rank therefore always reaches its next token, and ranks
change only when a token is generated or a request is admitted or arrives, so the whole always makes progress.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.engine.kv_cache.manager import KVCacheManager
from appliance.engine.policies import make_waiting_queue
from appliance.engine.request import Request, RequestError, RequestStatus
from appliance.engine.scheduler_config import SchedulerConfig
from appliance.engine.step import ModelOutput, NewRow, SchedulerOutput
from appliance.protocol.wire import AddRequest, FinishReason, SchedulerStats, TokenDelta, TraceEvent

REMEMBERED_LENGTHS = 1024


@dataclass(slots=True)
class _Step:
    """A scheduled step whose outcome is not known yet. The first two lists run in parallel with `output.rows`."""

    output: SchedulerOutput
    requests: list[Request] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)  # whether the step adds a token to the request
    promised_blocks: list[int] = field(default_factory=list)  # indexed ahead of being filled


class Scheduler:
    """One engine's scheduler. Not thread-safe: intake, aborts, and steps come from one thread.

    Every added request ends in exactly one way: a delta with a finish reason, or an `abort` that returned True.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        kv_cache: KVCacheManager,
        clock: Callable[[], float] = time.time,
        on_event: Callable[[TraceEvent], None] | None = None,
    ) -> None:
        self.config = config
        self.kv_cache = kv_cache
        self._clock = clock
        self._on_event = on_event
        self._eos_token_ids = frozenset(config.eos_token_ids)
        self._most_tokens_per_chunk = config.long_prefill_token_threshold or config.max_num_batched_tokens
        # of lately, and whether the output ended by itself there
        self.output_lengths: deque[tuple[int, bool]] = deque(maxlen=REMEMBERED_LENGTHS)
        self._requests: dict[str, Request] = {}  # all that live
        self._waiting = make_waiting_queue(config.policy)
        self._running: dict[str, Request] = {}
        self._free_rows = list(range(config.max_num_seqs))  # heap: low rows first keep the batch dense
        self._released_rows: set[int] = set()  # that the runner has not heard of yet
        self._under_way: dict[int, _Step] = {}  # by step number
        self._num_added = 0
        self._num_scheduled_steps = 0
        self._steps = 0
        self._prefix_cache_queries = 0
        self._prefix_cache_hits = 0
        self._num_preemptions = 0
        self._num_corrupted = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        self._iteration_tokens = 0

    # ---- intake ------------------------------------------------------------------------------------------------------

    def add_request(self, added: AddRequest) -> None:
        """Queue a request. Raises `RequestError` when it could never run; nothing is kept of it then."""
        if added.request_id in self._requests:
            raise RequestError("request_id", f"a request with the id {added.request_id!r} is being served already")
        request = Request.from_wire(
            added,
            arrival_index=self._num_added,
            eos_token_ids=self._eos_token_ids,
            max_model_len=self.config.max_model_len,
        )
        self.kv_cache.check_fits(request)
        request.trace = added.trace and self._on_event is not None
        self._num_added += 1
        self._requests[request.request_id] = request
        self._waiting.push(request)
        if request.trace:
            self._emit(request, "queued", prompt_tokens=request.num_prompt_tokens, waiting=len(self._waiting))

    def abort(self, request_id: str) -> bool:
        """End a request at once, also while a step with it is under way. False when no such request lives."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._finish(request, "abort")
        return True

    def has_work(self) -> bool:
        return bool(self._requests)

    # ---- one step ----------------------------------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput | None:
        """The next step, or None when there is nothing to compute before another outcome is known.

        Each output is owed one `update` or `fail_step`, in order. Steps may be scheduled ahead of them if the runner
        executes in order and knows the tokens that it sampled itself: a request then goes on behind a token whose id
        is not known here yet. If that token turns out to end it, what the later steps add is dropped.
        """
        if not self._requests:
            return None
        step = _Step(
            SchedulerOutput(self._num_scheduled_steps, rows=[], num_computed_tokens=[], num_scheduled_tokens=[])
        )
        budget = self._schedule_running(step)
        if budget:
            self._admit_waiting(step, budget)
        if not step.requests:
            return None
        output = step.output
        copies = self.kv_cache.take_copies()
        output.copies_out, output.copies_in = copies.copies_out, copies.copies_in
        output.released_rows = sorted(self._released_rows)
        self._released_rows.clear()
        self._under_way[output.step] = step
        self._num_scheduled_steps += 1
        return output

    def update(self, output: SchedulerOutput, result: ModelOutput) -> list[TokenDelta]:
        """Take in what a step sampled; returns what each request gained, those that were aborted meanwhile excepted."""
        step = self._end_step(output)
        now = self._clock()
        deltas = []
        for i, request in enumerate(step.requests):
            if request.status is RequestStatus.FINISHED:
                continue
            tokens = result.sampled[i]
            error = result.errors.get(i)
            request.num_ahead -= step.samples[i]
            if error is None and bool(tokens) != step.samples[i]:
                owed = "a token" if step.samples[i] else "none"
                error = f"the model runner returned {len(tokens)} tokens where {owed} was due"
            if error is not None:
                # Nobody knows why it failed; if its keys or values are bad, nobody may inherit them.
                self.kv_cache.withdraw_request(request)
                self._num_corrupted += i in result.corrupted
                deltas.append(self._fail(request, error))
                continue
            if request.wants_prompt_logprobs and (found := result.prompt_logprobs.get(i)):
                # From this chunk on: after a preemption they are computed again.
                request.prompt_logprobs[output.num_computed_tokens[i] :] = found
            if tokens:
                deltas.append(self._take_tokens(request, tokens, i, result, now))
        return deltas

    def fail_step(self, output: SchedulerOutput, message: str) -> list[TokenDelta]:
        """The step as a whole raised: its requests end with `message`, and what it was to write is not in the cache.

        Steps scheduled after it may build on it, so their requests end, too; their outcomes are still to be handed in.
        """
        lost = {}
        for step in (self._end_step(output), *self._under_way.values()):
            self.kv_cache.withdraw(step.promised_blocks, step.output.copies_out)
            lost.update(dict.fromkeys(step.requests))
        deltas = [self._fail(request, message) for request in lost if request.status is not RequestStatus.FINISHED]
        # The runner may have raised before it released these. Whoever took one since then was in one of these steps.
        self._released_rows.update(output.released_rows)
        return deltas

    # ---- queries -----------------------------------------------------------------------------------------------------

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            kv_cache_usage=self.kv_cache.usage,
            steps=self._steps,
            prefix_cache_queries=self._prefix_cache_queries,
            prefix_cache_hits=self._prefix_cache_hits,
            num_preemptions=self._num_preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
            iteration_tokens=self._iteration_tokens,
            host_cache_usage=self.kv_cache.host_usage,
            host_cache_hits=self.kv_cache.num_loaded_blocks * self.kv_cache.block_size,
            num_swapped=self.kv_cache.num_swapped,
            corrupted_requests=self._num_corrupted,
        )

    def live_requests(self) -> list[Request]:
        """All that have not ended: the running ones, then those that wait, each by rank."""
        waiting = (request for request in self._requests.values() if request.status is RequestStatus.WAITING)
        rank = self._waiting.rank
        return [*sorted(self._running.values(), key=rank), *sorted(waiting, key=rank)]

    def reset_prefix_cache(self) -> None:
        self.kv_cache.reset_prefix_cache()

    # ---- scheduling --------------------------------------------------------------------------------------------------

    def _schedule_running(self, step: _Step) -> int:
        """Schedule running requests; returns the tokens left for waiting ones, 0 when one had to be preempted.

        Requests that need one token get it before any longer chunk is cut, so a long prompt delays nobody's next
        token. Blocks are then given in order of rank, so whoever is preempted was not scheduled in this step yet, and
        none of its blocks was promised to the prefix index by it.
        """
        order = sorted(self._running.values(), key=self._waiting.rank)
        chunks = [
            # what is under way may be its last token, which is never computed
            request.num_tokens_ahead - request.num_computed_tokens
            if request.num_tokens_ahead < request.max_total_tokens
            else 0
            for request in order
        ]
        budget = self.config.max_num_batched_tokens - chunks.count(1)
        for i, pending in enumerate(chunks):
            if pending > 1:
                chunks[i] = min(pending, self._most_tokens_per_chunk, budget)
                budget -= chunks[i]

        num_kept = len(order)
        for i, (request, num_tokens) in enumerate(zip(order, chunks, strict=True)):
            if i == num_kept:
                break
            if num_tokens <= 0:
                continue
            blocks = self.kv_cache.grow(request, request.num_computed_tokens + num_tokens)
            while blocks is None and num_kept > i:
                num_kept -= 1
                self._preempt(order[num_kept])
                if num_kept > i:
                    blocks = self.kv_cache.grow(request, request.num_computed_tokens + num_tokens)
            if blocks is None:
                break  # it preempted itself, being the last
            if blocks:
                step.output.appended_blocks[request.row] = blocks
                if request.trace:
                    self._emit(request, "blocks_allocated", block_ids=blocks)
            self._schedule_chunk(step, request, num_tokens)
        return budget if num_kept == len(order) else 0

    def _admit_waiting(self, step: _Step, budget: int) -> None:
        """Admit waiting requests, strictly in the policy's order, until tokens, rows, or blocks are used up.

        What comes back from the host delays everybody's next token as well. So a step loads no more tokens than it
        could compute, unless they are one request's.
        """
        num_loaded = 0  # tokens
        free_unreserved: int | None = None  # blocks; counted when first needed
        while budget and self._free_rows and (request := self._waiting.peek()) is not None:
            if request.num_ahead:
                break  # preempted a moment ago: its newest token is on its way, and nobody may overtake it
            if free_unreserved is None:
                reserved = sum(self.kv_cache.blocks_to_come(running) for running in self._running.values())
                free_unreserved = self.kv_cache.num_free_blocks - reserved
            # Prompt logprobs need the logits of every prompt position: nothing can be skipped.
            prefix = None if request.wants_prompt_logprobs else self.kv_cache.find_prefix(request)
            num_cached_tokens = 0 if prefix is None else len(prefix.block_ids) * self.kv_cache.block_size
            num_tokens = request.num_tokens - num_cached_tokens
            if not self.config.enable_chunked_prefill and num_tokens > budget:
                break
            num_taken = self.kv_cache.blocks_to_come(request)
            if prefix is not None:
                num_taken += prefix.num_free - len(prefix.block_ids)
            if num_taken > free_unreserved:
                break
            to_load = 0 if prefix is None else prefix.num_on_host * self.kv_cache.block_size
            if to_load and num_loaded and num_loaded + to_load > self.config.max_num_batched_tokens:
                break
            num_loaded += to_load
            free_unreserved -= num_taken
            num_tokens = min(num_tokens, self._most_tokens_per_chunk, budget)
            budget -= num_tokens

            self._waiting.pop()
            if prefix is not None:
                step.promised_blocks += self.kv_cache.take_prefix(request, prefix)
            self._start(step, request, num_cached_tokens, num_tokens)

    def _start(self, step: _Step, request: Request, num_cached_tokens: int, num_tokens: int) -> None:
        """Give an admitted request its row and the blocks of its first chunk."""
        blocks = self.kv_cache.grow(request, num_cached_tokens + num_tokens)
        if blocks is None:
            raise RuntimeError("a request was admitted for which too few blocks were free")
        request.status = RequestStatus.RUNNING
        request.row = heapq.heappop(self._free_rows)
        request.num_computed_tokens = num_cached_tokens
        self._running[request.request_id] = request
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._clock()
            request.num_cached_tokens = num_cached_tokens
            if self.kv_cache.enable_prefix_caching and not request.wants_prompt_logprobs:
                self._prefix_cache_queries += request.num_tokens
                self._prefix_cache_hits += num_cached_tokens
        step.output.new_rows.append(
            NewRow(
                row=request.row,
                request_id=request.request_id,
                token_ids=request.token_ids.copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                block_ids=request.block_ids.copy(),
                sampling=request.sampling,
                stop_token_ids=request.stop_token_ids,
                wants_prompt_logprobs=request.wants_prompt_logprobs,
            )
        )
        if request.trace:
            self._emit(
                request,
                "admitted",
                row=request.row,
                cached_tokens=num_cached_tokens,
                cached_block_ids=request.block_ids[: len(request.block_ids) - len(blocks)],
            )
            self._emit(request, "blocks_allocated", block_ids=blocks)
        self._schedule_chunk(step, request, num_tokens)

    def _schedule_chunk(self, step: _Step, request: Request, num_tokens: int) -> None:
        """Put the next `num_tokens` tokens of a running request, which has the blocks for them, into `step`."""
        output = step.output
        if request.trace:
            computed = request.num_computed_tokens
            self._emit(request, "scheduled", step=output.step, tokens=num_tokens, computed_tokens=computed)
        output.rows.append(request.row)
        output.num_computed_tokens.append(request.num_computed_tokens)
        output.num_scheduled_tokens.append(num_tokens)
        request.num_computed_tokens += num_tokens
        # Only what is known can be found by its content.
        num_known_tokens = min(request.num_computed_tokens, request.num_tokens)
        step.promised_blocks += self.kv_cache.promise(request, num_known_tokens)
        samples = request.num_computed_tokens == request.num_tokens_ahead
        request.num_ahead += samples
        step.requests.append(request)
        step.samples.append(samples)

    # ---- the ends of a stay ------------------------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        """Back to the queue. Its full blocks stay findable, so resuming is cheap for as long as nobody needs them."""
        self._num_preemptions += 1
        request.num_preemptions += 1
        if self.config.preemption_mode == "swap" and not request.wants_prompt_logprobs:
            self.kv_cache.swap_out(request)
        num_blocks = self._leave_row(request)
        request.status = RequestStatus.WAITING
        request.num_computed_tokens = 0
        self._waiting.push_preempted(request)
        if request.trace:
            self._emit(request, "preempted", blocks_freed=num_blocks, tokens=request.num_tokens)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        num_blocks = 0
        if request.status is RequestStatus.RUNNING:
            num_blocks = self._leave_row(request)
            request.status = RequestStatus.FINISHED
        else:
            request.status = RequestStatus.FINISHED
            self._waiting.discard(request)
            self.kv_cache.drop_swapped(request)
        del self._requests[request.request_id]
        if request.num_output_tokens:
            self.output_lengths.append((request.num_output_tokens, reason == "stop"))
        if request.trace:
            self._emit(request, "finished", reason=reason, blocks_freed=num_blocks)

    def _leave_row(self, request: Request) -> int:
        """Free the row and the blocks of a running request; returns how many blocks."""
        del self._running[request.request_id]
        heapq.heappush(self._free_rows, request.row)
        self._released_rows.add(request.row)
        request.row = -1
        return self.kv_cache.free(request)

    # ---- outcomes ----------------------------------------------------------------------------------------------------

    def _end_step(self, output: SchedulerOutput) -> _Step:
        self._steps += 1
        self._iteration_tokens = output.total_tokens
        return self._under_way.pop(output.step)

    def _take_tokens(self, request: Request, tokens: list[int], i: int, result: ModelOutput, now: float) -> TokenDelta:
        """Append sampled tokens up to the one that ends the request."""
        finish_reason: FinishReason | None = None
        num_taken = 0
        while finish_reason is None and num_taken < len(tokens):
            finish_reason = request.append_token(tokens[num_taken])
            if request.trace:
                self._emit(request, "token", token_id=tokens[num_taken])
            num_taken += 1
        taken = tokens[:num_taken]
        self._generation_tokens += num_taken
        self._waiting.charge_output(request, num_taken)
        logprobs = result.logprobs.get(i)

        prompt_logprobs = queue_time = prefill_time = None
        if request.first_token_time is None and request.first_scheduled_time is not None:
            request.first_token_time = now
            queue_time = max(0.0, request.first_scheduled_time - request.arrival_time)
            prefill_time = now - request.first_scheduled_time
            self._prompt_tokens += request.num_prompt_tokens
            if request.wants_prompt_logprobs:
                prompt_logprobs = [None, *request.prompt_logprobs]
                request.prompt_logprobs = []
                request.wants_prompt_logprobs = False
        stop_reason = None
        if finish_reason is not None:
            if finish_reason == "stop" and taken[-1] not in request.eos_token_ids:
                stop_reason = taken[-1]
            self._finish(request, finish_reason)
        return TokenDelta(
            request_id=request.request_id,
            token_ids=taken,
            logprobs=None if logprobs is None else logprobs[:num_taken],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            num_cached_tokens=request.num_cached_tokens,
            prompt_logprobs=prompt_logprobs,
            queue_time=queue_time,
            prefill_time=prefill_time,
        )

    def _fail(self, request: Request, message: str) -> TokenDelta:
        self._finish(request, "error")
        return TokenDelta(
            request_id=request.request_id,
            token_ids=[],
            finish_reason="error",
            error=message,
            num_cached_tokens=request.num_cached_tokens,
        )

    def _emit(self, request: Request, event: str, **fields: int | float | str | list[int]) -> None:
        if self._on_event is not None:
            self._on_event(TraceEvent(request.request_id, self._clock(), event, fields))
