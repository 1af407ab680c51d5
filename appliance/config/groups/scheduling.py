"""Which requests run together in a step, and which wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.config.declaration import setting


@dataclass(frozen=True)
class SchedulingSettings:
    """Which requests run together in a step, and which wait."""

    max_num_seqs: int = setting(
        256,
        purpose="Sequences that may run at once; a request with n = 4 counts as four. Further ones wait in the queue.",
        memory="Little in itself: per row a block table and the sampler's state (a vocabulary-sized row of logits in "
        "float32 at the peak). The KV cache limits how many really run.",
        throughput="Larger batches give more tokens/s in total and fewer to each stream.",
        typical="64 to 512 on a GPU, 8 to 64 on the CPU.",
        formula="logits at the peak = sequences sampled in a step × vocabulary × 4 bytes",
        minimum=1,
    )
    max_num_batched_tokens: int | None = setting(
        None,
        purpose="Tokens of one step, over all requests: one for each decoding sequence, the rest for prompts. Prompts "
        "longer than what is left are computed in chunks.",
        memory="Activations grow in proportion; they are measured at the start and taken off the KV cache.",
        throughput="High: prompts finish sooner (time to first token), but a step takes longer, and every streaming "
        "client waits for it (inter-token latency). Low: the reverse.",
        typical="512 to 2048 on the CPU, 2048 to 16384 on a GPU.",
        formula="longest pause of a stream ≈ max-num-batched-tokens ÷ prefill tokens/s",
        when_unset="8192 on a GPU, 2048 on the CPU; never less than max-num-seqs, nor, without "
        "enable-chunked-prefill, than max-model-len.",
        minimum=1,
        unit="tokens",
    )
    scheduling_policy: Literal["fcfs", "priority", "fair"] = setting(
        "fcfs",
        purpose="Who is taken from the queue first: fcfs, who came first; priority, the lowest `priority` of the "
        "request, then who came first; fair, the API key that has been served the fewest tokens (a new or idle key "
        "starts level with the least served one, so that nobody saves up).",
        throughput="Equal in total; fair and priority change whose requests wait.",
        typical="fcfs for one tenant, fair for several.",
    )
    enable_chunked_prefill: bool = setting(
        True,
        purpose="Compute long prompts in pieces beside running decodes. When off, a prompt is only admitted to a step "
        "that has room for all of it, so max-num-batched-tokens must be at least max-model-len.",
        throughput="On keeps streams smooth while long prompts come in; off makes them pause.",
        typical="On.",
    )
    long_prefill_token_threshold: int = setting(
        0,
        purpose="Most prompt tokens of one request in one step, so that a very long prompt leaves room for short ones "
        "beside it. 0: no limit but max-num-batched-tokens. Needs enable-chunked-prefill.",
        throughput="Short requests overtake long prompts; the long ones take more steps.",
        typical="0; a quarter of max-num-batched-tokens for mixed lengths.",
        minimum=0,
        unit="tokens",
    )
    max_num_queued_reqs: int = setting(
        4096,
        purpose="Sequences that may wait for their first token; further requests get a 429 with retry-after at once "
        "instead of an ever longer wait. A request that finds nobody waiting is always admitted. 0: no limit. The "
        "default is bounded because an unbounded queue turns overload into timeouts for everybody, and into memory "
        "of the server.",
        memory="Each waiting request costs its tokens (about 36 bytes each in the engine) and an open connection.",
        throughput="None below the limit.",
        typical="Four to sixteen times max-num-seqs.",
        formula="longest wait ≈ max-num-queued-reqs ÷ requests finished per second",
        minimum=0,
    )
    max_num_queued_tokens: int = setting(
        4_194_304,
        purpose="Prompt tokens, over all sequences, that may wait for their first token; further requests get a 429 "
        "with retry-after. A request that finds nobody waiting is always admitted. 0: no limit. It catches what a "
        "count of requests cannot: a few very long prompts.",
        memory="At most about 36 bytes a token, 150 MB at the default.",
        throughput="None below the limit.",
        typical="Seconds of patience × prefill tokens/s.",
        formula="longest wait ≈ max-num-queued-tokens ÷ prefill tokens/s",
        minimum=0,
        unit="tokens",
    )
    preemption_mode: Literal["recompute", "swap"] = setting(
        "recompute",
        purpose="What happens to the request that came last when the KV cache is full. recompute: its blocks go to "
        "whoever needs them, and it computes again what is in neither tier of the prefix cache when its turn comes. "
        "swap: its full blocks are copied to host memory at once and kept there until it is back.",
        memory="swap needs swap-space.",
        throughput="recompute costs a prefill, less what the prefix cache still has; swap costs two copies over PCIe.",
        typical="recompute.",
    )
    async_scheduling: bool = setting(
        True,
        purpose="On a GPU, prepare and launch the next step while this one runs, behind tokens that are not known yet. "
        "On the CPU a step is synchronous with or without it, as both would compete for the same cores.",
        throughput="Hides the scheduler's and the launches' time behind the model's; small models gain most. A request "
        "that ends early costs one step of its row.",
        typical="On; off to debug.",
    )
