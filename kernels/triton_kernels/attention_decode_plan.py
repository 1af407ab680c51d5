"""How the work of one decode step is divided among the programs of the decode kernel, on the device.

The contexts of all requests and key/value heads, in units of a few tokens, stand one after another and are cut into
equal parts, one a program (the stream-K decomposition of Osama et al. 2023 applied to attention). So a program reads as
much as any other whatever the lengths, the grid depends on the card only, and a captured launch serves every context
length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_configs import DecodeConfig

PLAN_CHUNK = 256  # requests or programs that the planning kernel handles at once


@triton.jit
def first_token(length, shared, window, HAS_WINDOW: tl.constexpr, HAS_SHARED: tl.constexpr):
    """The first token that the decode kernel attends to: past the shared prefix, within the sliding window."""
    first = length * 0
    if HAS_WINDOW:
        first = tl.maximum(length - window, 0)
    if HAS_SHARED:
        first = tl.maximum(first, shared)
    return first


# Nothing that changes from step to step is specialized, not even by alignment: a new variant would be compiled while
# requests wait.
@triton.jit(
    do_not_specialize=["num_requests", "num_programs", "min_units", "window"],
    do_not_specialize_on_alignment=["seq_lens", "shared_lens", "unit_start", "first_request", "units_per_program"],
)
def plan_kernel(
    seq_lens,
    shared_lens,
    unit_start,
    first_request,
    units_per_program,
    num_requests,
    num_programs,
    min_units,
    window,
    NUM_KV_HEADS: tl.constexpr,
    UNIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SHARED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program r places request r among the others, and names it to the programs whose part begins in it."""
    request = tl.program_id(0)
    # What pads a batch stands behind its last request and is no work: as lines of their own, all with one program, a
    # few dozen such rows would take longer than the longest of the other parts. Something is left of any batch.
    end = 1
    for start in range(0, num_requests, CHUNK):
        row = start + tl.arange(0, CHUNK)
        length = tl.load(seq_lens + row, mask=row < num_requests, other=0)
        end = tl.maximum(end, tl.max(tl.where(length > 0, row + 1, 0)))
    before = 0
    own = 0
    total = 0
    for start in range(0, num_requests, CHUNK):
        row = start + tl.arange(0, CHUNK)
        here = row < num_requests
        length = tl.load(seq_lens + row, mask=here, other=0)
        shared = length * 0
        if HAS_SHARED:
            shared = tl.load(shared_lens + row, mask=here, other=0)
        first = first_token(length, shared, window, HAS_WINDOW, HAS_SHARED)
        # one unit even of nothing: an empty row among others gets its zeros like any other output
        units = tl.where(row < end, tl.maximum(tl.cdiv(length, UNIT) - first // UNIT, 1), 0)
        before += tl.sum(tl.where(row < request, units, 0))
        own += tl.sum(tl.where(row == request, units, 0))
        total += tl.sum(units)
    part = tl.maximum(tl.cdiv(total * NUM_KV_HEADS, num_programs), min_units)
    tl.store(unit_start + request, before)
    if request == num_requests - 1:
        tl.store(unit_start + num_requests, total)
        tl.store(units_per_program, part)
    first_program = tl.cdiv(before * NUM_KV_HEADS, part)
    end_program = tl.cdiv((before + own) * NUM_KV_HEADS, part)
    # programs without a part get the last request, so that none reads what nobody wrote
    end_program = tl.where(request == end - 1, num_programs, end_program)
    for start in range(first_program, end_program, CHUNK):
        program = start + tl.arange(0, CHUNK)
        tl.store(first_request + program, tl.zeros([CHUNK], tl.int32) + request, mask=program < end_program)


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Which part of a batch each program of the decode kernel reads. All tensors int32, on the device."""

    config: DecodeConfig
    sliding_window: int | None
    num_shared_tokens: torch.Tensor | None
    unit_start: torch.Tensor  # [R + 1] units of one key/value head in the requests before each
    first_request: torch.Tensor  # [num_programs] the request in which each program's part begins
    units_per_program: torch.Tensor  # [1]


def plan_decode(
    seq_lens: torch.Tensor,
    num_kv_heads: int,
    config: DecodeConfig,
    *,
    sliding_window: int | None = None,
    num_shared_tokens: torch.Tensor | None = None,
) -> DecodePlan:
    """Divide a batch among the programs: once a step for each sliding window, not once a layer.

    seq_lens [R] int32 on the device, 0 behind the last request of a padded batch; num_shared_tokens [R] int32, see
    `shared_prefix_decode_attention`. Never waits for the device.
    """
    num_requests = seq_lens.shape[0]
    buffer = torch.empty(num_requests + 2 + config.num_programs, dtype=torch.int32, device=seq_lens.device)
    plan = DecodePlan(
        config,
        sliding_window,
        num_shared_tokens,
        unit_start=buffer[: num_requests + 1],
        first_request=buffer[num_requests + 1 : -1],
        units_per_program=buffer[-1:],
    )
    plan_kernel[(num_requests,)](
        seq_lens,
        seq_lens if num_shared_tokens is None else num_shared_tokens,
        plan.unit_start,
        plan.first_request,
        plan.units_per_program,
        num_requests,
        config.num_programs,
        config.min_units,
        sliding_window or 0,
        NUM_KV_HEADS=num_kv_heads,
        UNIT=config.unit_tokens,
        HAS_WINDOW=sliding_window is not None,
        HAS_SHARED=num_shared_tokens is not None,
        CHUNK=PLAN_CHUNK,
        num_warps=4,
    )
    return plan
