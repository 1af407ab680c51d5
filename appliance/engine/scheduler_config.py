"""The numbers that steer the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from appliance.engine.policies import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Named as the settings are. Raises ValueError for a combination with which some request could never run."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    policy: PolicyName = "fcfs"
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0  # most tokens of one prompt in a step; 0: as many as the budget holds
    eos_token_ids: tuple[int, ...] = ()
    preemption_mode: Literal["recompute", "swap"] = "recompute"

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, got {self.max_num_seqs}")
        if self.max_model_len < 2:
            raise ValueError(
                f"max_model_len must be at least 2 (one prompt token, one generated), got {self.max_model_len}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running sequence takes a token a step. Raise the one or lower the other"
            )
        if self.long_prefill_token_threshold < 0:
            raise ValueError(
                f"long_prefill_token_threshold must be 0 (off) or positive, got {self.long_prefill_token_threshold}"
            )
        if self.enable_chunked_prefill:
            return
        if self.max_num_batched_tokens < self.max_model_len:
            raise ValueError(
                f"without chunked prefill a prompt has to fit in one step, but max_num_batched_tokens "
                f"({self.max_num_batched_tokens}) is below max_model_len ({self.max_model_len}). Raise "
                f"max_num_batched_tokens to {self.max_model_len}, lower max_model_len, or set enable_chunked_prefill"
            )
        if self.long_prefill_token_threshold:
            raise ValueError(
                "long_prefill_token_threshold splits prompts, which enable_chunked_prefill=False forbids. "
                "Set the threshold to 0 or set enable_chunked_prefill"
            )
