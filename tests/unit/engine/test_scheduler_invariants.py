"""Random arrivals, aborts and failures in small caches, under every policy: what must hold holds after every step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.engine.request import RequestError, RequestStatus
from appliance.engine.step import SchedulerOutput
from tests.unit.engine.null_model import Harness, expected_tokens

# Two stems and a small alphabet, so that prefixes are shared, wholly, partly and by accident.
STEMS = ([*range(24)], [*range(8), *([0] * 16)])

prompts = st.builds(
    lambda stem, cut, tail: STEMS[stem][:cut] + tail,
    st.sampled_from([0, 1]),
    st.sampled_from([0, 1, 4, 5, 8, 8, 9, 12, 15, 16, 17, 24]),
    st.sampled_from([[], [], [0], [1, 1]]),
)


# Drawn before a step and used within it: a draw that ends the example must not leave a step half done.
places = st.integers(0, 23)

requests = st.tuples(
    prompts,
    st.fixed_dictionaries(
        {
            "max_tokens": st.integers(1, 12),
            "priority": st.integers(0, 2),
            "key_id": st.sampled_from("abc"),
            "cache_salt": st.sampled_from(["", "", "s"]),
            "prompt_logprobs": st.sampled_from([None, None, None, 0]),
        }
    ),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Sees the scheduler as engine and runner do, and looks inside it between their calls."""

    @initialize(
        policy=st.sampled_from(["fcfs", "priority", "fair"]),
        num_slots=st.integers(28, 48),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 4),
        extra_budget=st.integers(0, 24),
        threshold=st.sampled_from([0, 0, 1, 5]),
        chunked=st.booleans(),
        caching=st.booleans(),
        num_host_slots=st.sampled_from([0, 0, 4, 12, 60]),
        preemption_mode=st.sampled_from(["recompute", "swap"]),
        depth=st.integers(1, 3),
    )
    def start(
        self,
        policy: str,
        num_slots: int,
        block_size: int,
        max_num_seqs: int,
        extra_budget: int,
        threshold: int,
        chunked: bool,
        caching: bool,
        num_host_slots: int,
        preemption_mode: str,
        depth: int,
    ) -> None:
        self.engine = Harness(
            policy=policy,
            num_blocks=num_slots // block_size,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=40,
            max_num_batched_tokens=max_num_seqs + extra_budget if chunked else 40 + extra_budget,
            enable_chunked_prefill=chunked,
            long_prefill_token_threshold=threshold if chunked else 0,
            caching=caching,
            num_host_blocks=num_host_slots // block_size if caching else 0,
            preemption_mode=preemption_mode,
            eos_token_ids=(49,),
        )
        self.depth = depth
        self.prompts: dict[str, list[int]] = {}
        self.aborted: set[str] = set()

    @rule(requests=st.lists(requests, min_size=1, max_size=8))
    def add(self, requests: list[tuple[list[int], dict[str, Any]]]) -> None:
        kv_cache = self.engine.scheduler.kv_cache
        for prompt, fields in requests:
            impossible = not prompt or kv_cache.blocks_for(len(prompt) + fields["max_tokens"] - 1) > kv_cache.num_blocks
            if impossible:
                with pytest.raises(RequestError):
                    self.engine.add(prompt, **fields)
            else:
                self.prompts[self.engine.add(prompt, **fields)] = prompt

    @rule(number=st.integers(1, 12))
    def step(self, number: int) -> None:
        for _ in range(number):
            for output in self.schedule_ahead():
                result = self.engine.model.execute(output, ended=self.over())
                self.engine.collect(self.engine.scheduler.update(output, result))
                self.check_state()

    @precondition(lambda self: self.engine.scheduler.has_work())
    @rule(aborts=st.lists(places, max_size=2), fails=st.booleans(), failing=st.lists(places, max_size=1))
    def step_in_which_something_goes_wrong(self, aborts: list[int], fails: bool, failing: list[int]) -> None:
        scheduler, model = self.engine.scheduler, self.engine.model
        first, *others = self.schedule_ahead()
        for place in aborts:
            self.abort(place)
        if fails:
            model.forget(first)
            self.engine.collect(scheduler.fail_step(first, "the device is gone"))
        else:
            fail = {place % len(first.rows) for place in failing}
            self.engine.collect(scheduler.update(first, model.execute(first, fail, self.over())))
        for output in others:
            self.engine.collect(scheduler.update(output, model.execute(output, ended=self.over())))

    def over(self) -> set[str]:
        return self.aborted | set(self.engine.last)

    @precondition(lambda self: self.engine.scheduler.has_work())
    @rule(place=places)
    def abort(self, place: int) -> None:
        living = list(self.engine.scheduler._requests)
        if living:
            name = living[place % len(living)]
            assert self.engine.scheduler.abort(name)
            self.aborted.add(name)

    @rule()
    def reset_prefix_cache(self) -> None:
        self.engine.scheduler.reset_prefix_cache()

    def schedule_ahead(self) -> list[SchedulerOutput]:
        """As many steps as may be under way at once, as far as there is work for them."""
        scheduler = self.engine.scheduler
        config = scheduler.config
        outputs = []
        while len(outputs) < self.depth and (output := scheduler.schedule()) is not None:
            outputs.append(output)
            assert output.rows
            assert output.total_tokens <= config.max_num_batched_tokens
            assert len(output.rows) <= config.max_num_seqs
            if config.long_prefill_token_threshold:
                assert max(output.num_scheduled_tokens) <= config.long_prefill_token_threshold
        assert outputs or not scheduler.has_work(), "there is work, but nothing is scheduled"
        return outputs

    @invariant()
    def check_state(self) -> None:
        self.holders_and_reference_counts_agree()
        self.rows_belong_to_one_request_each()
        self.every_request_has_one_outcome_or_lives()
        self.host_slots_are_held_for_preempted_requests_alone()

    def holders_and_reference_counts_agree(self) -> None:
        scheduler = self.engine.scheduler
        pool, index = scheduler.kv_cache.pool, scheduler.kv_cache.index
        running = list(scheduler._running.values())
        holders = Counter(block for request in running for block in request.block_ids)
        assert [pool.ref_count(block) for block in range(pool.num_blocks)] == [
            holders[block] for block in range(pool.num_blocks)
        ]
        assert sorted(pool.free_blocks()) == [block for block in range(pool.num_blocks) if not holders[block]]
        assert pool.num_free == pool.num_blocks - len(holders)
        for request in running:
            assert len(set(request.block_ids)) == len(request.block_ids)
            assert request.num_computed_tokens <= len(request.block_ids) * scheduler.kv_cache.block_size
        for block, number in holders.items():
            assert number == 1 or block in index or self.was_reset_or_withdrawn(block)

    def was_reset_or_withdrawn(self, block: int) -> bool:
        """A shared block that is not in the index any more is a full one of everybody who holds it."""
        size = self.engine.scheduler.kv_cache.block_size
        return all(
            request.num_computed_tokens >= (request.block_ids.index(block) + 1) * size
            for request in self.engine.scheduler._running.values()
            if block in request.block_ids
        )

    def rows_belong_to_one_request_each(self) -> None:
        scheduler = self.engine.scheduler
        rows = [request.row for request in scheduler._running.values()]
        assert sorted(rows + scheduler._free_rows) == list(range(scheduler.config.max_num_seqs))
        assert all(request.status is RequestStatus.RUNNING for request in scheduler._running.values())
        waiting = [r for r in scheduler._requests.values() if r.status is RequestStatus.WAITING]
        assert len(waiting) == len(scheduler._waiting)
        assert not any(request.block_ids for request in waiting)

    def host_slots_are_held_for_preempted_requests_alone(self) -> None:
        scheduler = self.engine.scheduler
        kv_cache = scheduler.kv_cache
        waiting = {r.request_id for r in scheduler._requests.values() if r.status is RequestStatus.WAITING}
        assert kv_cache._swapped.keys() <= waiting
        if kv_cache.host is not None:
            held = Counter(kv_cache.host._planned)
            for slots in kv_cache._swapped.values():
                held.update(slots)
            assert kv_cache.host._num_holders == [held[slot] for slot in range(kv_cache.host.num_slots)]

    def every_request_has_one_outcome_or_lives(self) -> None:
        living = set(self.engine.scheduler._requests)
        ended = set(self.engine.last)
        assert not ended & self.aborted
        assert not living & (ended | self.aborted)
        assert living | ended | self.aborted == set(self.prompts)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        # Far more than the work that is left, even if all of it were preempted again and again.
        engine.run(most_steps=200 * (1 + len(engine.scheduler._requests)))
        self.check_state()
        assert engine.scheduler.kv_cache.num_free_blocks == engine.scheduler.kv_cache.num_blocks
        assert not engine.scheduler._under_way
        for name, tokens in engine.tokens.items():
            assert tokens == expected_tokens(self.prompts[name], len(tokens), engine.salts[name])
            if name in engine.last and engine.last[name].finish_reason == "length":
                assert tokens
        for delta in engine.deltas:
            if delta.prompt_logprobs is not None:
                found = [entry.token_ids[0] for entry in delta.prompt_logprobs[1:] if entry is not None]
                assert found == list(range(1, len(self.prompts[delta.request_id])))


TestSchedulerInvariants = SchedulerMachine.TestCase
TestSchedulerInvariants.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.reuse, Phase.generate],  # shrinking a failure takes minutes: add Phase.shrink when there is one
)
