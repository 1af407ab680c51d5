"""What attention on a GPU needs to know of a step: all of it on the device, so that a graph can hold the whole step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from appliance_kernels.triton_kernels.attention_decode import DecodePlan, DecodeWorkspace
    from appliance_kernels.triton_kernels.attention_fresh import FreshPlan
    from appliance_kernels.triton_kernels.attention_shared_prefix import SharedPrefixWorkspace


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Tokens with which several of the decoding requests begin, to be read once for all of them."""

    table: torch.Tensor  # [B] int32, kernel blocks of these tokens
    num_tokens: torch.Tensor  # [D] int32: how many a request shares, one number for all that do, 0 for the others
    workspace: SharedPrefixWorkspace


@dataclass(slots=True)
class DeviceMetadata:
    """T tokens of R requests: first those of D requests that have one token each, then the chunks of C requests that
    continue what the cache holds of them, then whole prompts or first chunks, which attend to nothing but themselves.

    All tensors are int32. Rows of a padded batch have length 0 and slot -1. Cache layout as in `AttentionMetadata`.
    """

    positions: torch.Tensor  # [T] position of each token in its request
    slot_mapping: torch.Tensor  # [T] slot that receives each token's key and value; negative: padding
    block_tables: torch.Tensor  # [R, B] kernel blocks of each request in order; entries past its end mean nothing
    seq_lens: torch.Tensor  # [R] tokens each request attends to: computed before plus scheduled now
    workspace: DecodeWorkspace
    num_decodes: int = 0  # D
    num_continued: int = 0  # C
    num_continued_tokens: int = 0
    continued_start: torch.Tensor | None = None  # [C + 1] where each chunk begins, counted from token D; None: C is 0
    fresh_start: torch.Tensor | None = None  # [R - D - C + 1] where each prompt begins, counted from token 0
    shared: SharedPrefix | None = None
    fresh_plan: FreshPlan | None = None  # made once a step
    plans: dict[int | None, DecodePlan] = field(default_factory=dict)  # by sliding window, made once a step
