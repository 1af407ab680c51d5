"""What server and engine say to each other over their Unix stream socket.

A frame is a 4-byte big-endian length and that many bytes of MessagePack, one tagged struct each. The server sends
`ToEngine`, the engine sends `FromEngine`. Token ids only: text never crosses this socket.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from appliance.protocol.sampling_params import SamplingParams

FRAME_HEADER_BYTES = 4
MAX_FRAME_BYTES = 256 * 2**20

FinishReason = Literal["stop", "length", "abort", "error", "shed"]  # shed: could not end before a deadline
Phase = Literal["starting", "loading_weights", "allocating_kv_cache", "warming_up", "ready", "failed"]


class _Message(msgspec.Struct, frozen=True, omit_defaults=True, tag=True, array_like=True):
    pass


# ---- server -> engine ------------------------------------------------------------------------------------------------


class AddRequest(_Message, frozen=True):
    """One sequence to generate. `arrival_time` is wall-clock seconds (`time.time()`)."""

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    arrival_time: float
    priority: int = 0  # lower runs first, as in vLLM
    key_id: str = ""  # whose virtual token counter pays, under the fair policy
    cache_salt: str = ""  # requests share cached prefixes only within one salt
    num_resumed_tokens: int = 0  # the last ones of prompt_token_ids are output that another engine generated
    trace: bool = False  # report every scheduling event of this request as TraceEvent


class AbortRequests(_Message, frozen=True):
    request_ids: list[str]


class ResetPrefixCache(_Message, frozen=True):
    pass


class Drain(_Message, frozen=True):
    """Go on only with what can end before `deadline`, seconds of CLOCK_MONOTONIC; None: with everything again."""

    deadline: float | None


class Ping(_Message, frozen=True):
    """Answered by a Heartbeat from the step loop itself, so an answer proves that the loop turns."""


ToEngine = AddRequest | AbortRequests | ResetPrefixCache | Drain | Ping


# ---- engine -> server ------------------------------------------------------------------------------------------------


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities at one position: the token itself first, then the `k` most likely, best first."""

    token_ids: list[int]
    logprobs: list[float]
    rank: int  # of the token itself; 1 is the most likely


class TokenDelta(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """What one step added to one request; the last one has a finish reason."""

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id that ended it; None for the end-of-sequence token
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # with the first token; entry 0 is None
    error: str | None = None  # with finish_reason "error"
    queue_time: float | None = None  # seconds from arrival to the first scheduling; with the first token
    prefill_time: float | None = None  # seconds from there to the first token; with the first token


class DrainOutlook(msgspec.Struct, frozen=True, array_like=True):
    """What a request can expect that comes while the engine drains; see `lifecycle.drain_planner.Outlook`."""

    start: float
    seconds_per_prompt_token: float
    seconds_per_token: float
    typical_tokens: float


class SchedulerStats(msgspec.Struct, frozen=True, omit_defaults=True, array_like=True):
    """A snapshot after a step; counters count since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0..1, blocks held by requests over all blocks
    steps: int = 0
    prefix_cache_queries: int = 0  # prompt tokens looked up
    prefix_cache_hits: int = 0  # prompt tokens found
    num_preemptions: int = 0
    prompt_tokens: int = 0  # prompt tokens computed or found
    generation_tokens: int = 0
    iteration_tokens: int = 0  # tokens of the newest step; 0 where they were told before, to whichever server
    host_cache_usage: float = 0.0  # 0..1, slots of the host tier with content over all slots
    host_cache_hits: int = 0  # tokens whose keys and values were copied back from the host
    num_swapped: int = 0  # preempted sequences that the host tier keeps blocks for
    corrupted_requests: int = 0  # sequences that ended because the model made NaN or infinite logits
    drain: DrainOutlook | None = None  # only while the engine drains


class StepOutputs(_Message, frozen=True):
    outputs: list[TokenDelta]
    stats: SchedulerStats


class Heartbeat(_Message, frozen=True):
    """Sent by the step loop in answer to Ping."""

    stats: SchedulerStats
    busy: bool  # there is work; then `stats.steps` must move


class PhaseChange(_Message, frozen=True):
    """Where the start is. `detail` is for people; with phase `failed` it is the reason and the fix."""

    phase: Phase
    detail: str = ""
    progress: float | None = None  # 0..1 while weights load


class EngineReady(_Message, frozen=True):
    """Sent once a real token was decoded, and to every server that connects later."""

    model: str
    max_model_len: int
    vocab_size: int
    block_size: int  # tokens
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: str
    device: str
    startup_seconds: float


class TraceEvent(_Message, frozen=True):
    """One event in the life of a traced request; `fields` are plain values for people and `pagebox trace`."""

    request_id: str
    time: float  # time.time()
    event: str
    fields: dict[str, int | float | str | list[int]]


FromEngine = StepOutputs | Heartbeat | PhaseChange | EngineReady | TraceEvent

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """`message` as one frame, header included."""
    body = _encoder.encode(message)
    return len(body).to_bytes(FRAME_HEADER_BYTES, "big") + body


def decode_to_engine(body: bytes | memoryview) -> ToEngine:
    return _to_engine.decode(body)


def decode_from_engine(body: bytes | memoryview) -> FromEngine:
    return _from_engine.decode(body)
