"""What scheduler and runner hand each other once a step: plain data, no methods that decide anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import TokenLogprobs


@dataclass(slots=True)
class NewRow:
    """A request that takes a row of the persistent batch in this step (newly admitted, or resumed after preemption).

    `token_ids` is everything known of it, prompt first; `block_ids` covers at least the tokens scheduled in this step,
    cached prefix included.
    """

    row: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    block_ids: list[int]
    sampling: SamplingParams  # with a seed, always
    stop_token_ids: frozenset[int]  # every id that ends it, the model's end-of-sequence ids included unless ignored
    wants_prompt_logprobs: bool = False  # False once they were delivered, also after a preemption


@dataclass(slots=True)
class SchedulerOutput:
    """One step. The lists `rows`, `num_computed_tokens`, `num_scheduled_tokens` run in parallel, one entry per request.

    Request in row `r` runs the tokens at positions `num_computed … num_computed + num_scheduled - 1`. The runner knows
    the ids: it got the prompt with `NewRow` and sampled the rest itself. A row whose scheduled tokens reach the last
    known token is sampled; one whose prompt is cut short (chunked prefill) is not.
    """

    step: int
    rows: list[int]
    num_computed_tokens: list[int]
    num_scheduled_tokens: list[int]
    new_rows: list[NewRow] = field(default_factory=list)
    released_rows: list[int] = field(default_factory=list)  # finished or preempted since the last step; free them first
    appended_blocks: dict[int, list[int]] = field(default_factory=dict)  # row -> blocks added to an old row's table
    # Between the tiers of the key/value cache, before the step writes anything: all copies out, then all copies in.
    copies_out: list[tuple[int, int]] = field(default_factory=list)  # (device block, host slot)
    copies_in: list[tuple[int, int]] = field(default_factory=list)  # (host slot, device block)

    @property
    def total_tokens(self) -> int:
        return sum(self.num_scheduled_tokens)


@dataclass(slots=True)
class ModelOutput:
    """The outcome of one step; lists run in parallel with `SchedulerOutput.rows`."""

    sampled: list[list[int]]  # new token ids of each row; empty when its prompt is not finished
    logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)  # by index in `rows`, one per sampled token
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(
        default_factory=dict
    )  # by index; the prompt positions that this step computed, first one is position 1
    errors: dict[int, str] = field(default_factory=dict)  # by index: this request failed, alone
    corrupted: set[int] = field(default_factory=set)  # of them, those whose logits were NaN or infinite
