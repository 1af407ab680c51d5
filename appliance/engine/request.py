"""One sequence from intake to its end: its tokens, its place in the cache, and what it still owes its client."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, field

import msgspec

from appliance.protocol.sampling_params import ParameterError, SamplingParams
from appliance.protocol.wire import AddRequest, FinishReason, TokenLogprobs

_SEED_BITS = 63  # what torch.Generator.manual_seed takes without wrapping


class RequestError(ParameterError):
    """This request can never run here. `param` names the field to change, the message says by how much."""


class RequestStatus(enum.Enum):
    WAITING = enum.auto()  # never admitted, or preempted
    RUNNING = enum.auto()  # owns a row and blocks
    FINISHED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """The scheduler's view of a sequence: `num_computed_tokens` chases `num_tokens`, through prefill and decode alike.

    `num_computed_tokens` counts tokens whose keys and values are in the cache, or will be once the steps that are
    under way have run.
    """

    request_id: str
    arrival_index: int  # order of intake, unique
    token_ids: list[int]  # prompt, then output
    num_prompt_tokens: int
    max_total_tokens: int  # it ends when token_ids is this long: max_tokens and max_model_len in one number
    sampling: SamplingParams  # with a seed, always
    eos_token_ids: frozenset[int]  # empty when ignored
    stop_token_ids: frozenset[int]  # every id that ends it, eos_token_ids included
    arrival_time: float
    priority: int
    key_id: str
    cache_salt: str
    trace: bool
    wants_prompt_logprobs: bool  # until they were delivered

    status: RequestStatus = RequestStatus.WAITING
    row: int = -1  # while running
    num_computed_tokens: int = 0
    num_ahead: int = 0  # tokens that steps under way will add: their places are known, their ids are not
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache at the first admission
    num_preemptions: int = 0
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # collected so far, from position 1

    block_ids: list[int] = field(default_factory=list)  # in order of position
    block_hashes: list[bytes] = field(default_factory=list)  # of its full blocks, as far as anyone asked for them
    num_indexed_blocks: int = 0  # leading blocks that were offered to the prefix index

    first_scheduled_time: float | None = None
    first_token_time: float | None = None

    @classmethod
    def from_wire(
        cls, added: AddRequest, *, arrival_index: int, eos_token_ids: frozenset[int], max_model_len: int
    ) -> Request:
        """Raises `RequestError` when the prompt is empty or leaves no room for a token."""
        sampling = added.sampling
        num_tokens = len(added.prompt_token_ids)
        num_prompt_tokens = num_tokens - added.num_resumed_tokens
        if num_prompt_tokens <= 0:
            raise RequestError("prompt", "the prompt has no tokens; at least one is needed")
        if num_tokens >= max_model_len:
            raise RequestError(
                "prompt",
                f"the prompt has {num_tokens} tokens, and at most {max_model_len - 1} fit beside one generated "
                f"token in max_model_len ({max_model_len}); shorten the prompt or raise max_model_len",
            )
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(_SEED_BITS))
        max_total_tokens = max_model_len
        if sampling.max_tokens is not None:
            max_total_tokens = min(max_model_len, num_prompt_tokens + sampling.max_tokens)
        eos = frozenset() if sampling.ignore_eos else eos_token_ids
        return cls(
            request_id=added.request_id,
            arrival_index=arrival_index,
            token_ids=list(added.prompt_token_ids),
            num_prompt_tokens=num_prompt_tokens,
            max_total_tokens=max_total_tokens,
            sampling=sampling,
            eos_token_ids=eos,
            stop_token_ids=eos.union(sampling.stop_token_ids),
            arrival_time=added.arrival_time,
            priority=added.priority,
            key_id=added.key_id,
            cache_salt=added.cache_salt,
            trace=added.trace,
            wants_prompt_logprobs=sampling.prompt_logprobs is not None,
        )

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_tokens_ahead(self) -> int:
        """Its length once the steps under way have run, if none of them ends it early."""
        return len(self.token_ids) + self.num_ahead

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def append_token(self, token_id: int) -> FinishReason | None:
        """Add a generated token; returns why the request ends with it, or None when it goes on."""
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids and self.num_output_tokens > self.sampling.min_tokens:
            return "stop"
        if len(self.token_ids) >= self.max_total_tokens:
            return "length"
        return None
