"""The last step of the decode kernel for one request and key/value head."""

from __future__ import annotations

import triton
import triton.language as tl

from appliance_kernels.triton_kernels.attention_common import NOTHING_SEEN


@triton.jit
def finish(
    acc,  # [ROWS, DIM_PAD] float32
    peak,  # [ROWS] float32
    weight,  # [ROWS] float32
    out,
    out_stride_row,
    out_stride_head,
    prefix_acc,
    prefix_stats,
    shared_lens,
    num_prefix_splits,
    num_requests,
    request,
    head,
    length,
    HEADS_PER_KV: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
):
    """Add what the shared prefix contributes, and write the outputs of one request and key/value head."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_PAD)
    exists = row < HEADS_PER_KV
    stored = exists[:, None] & (dim < HEAD_DIM)[None, :]
    q_head = head * HEADS_PER_KV + row
    if HAS_SHARED:
        shares = (tl.load(shared_lens + request) > 0) & (length > 0)
        for split in range(tl.where(shares, num_prefix_splits, 0)):
            source = (split * num_requests + request) * (NUM_KV_HEADS * HEADS_PER_KV) + q_head
            other_peak = tl.load(prefix_stats + source * 2, mask=exists, other=NOTHING_SEEN)
            other_weight = tl.load(prefix_stats + source * 2 + 1, mask=exists, other=0.0)
            # a split that saw nothing of the prefix has left no acc
            other = tl.load(
                prefix_acc + source.to(tl.int64)[:, None] * HEAD_DIM + dim[None, :],
                mask=stored & (other_weight > 0)[:, None],
                other=0.0,
            )
            new_peak = tl.maximum(peak, other_peak)
            shrink = tl.exp2(peak - new_peak)
            other_shrink = tl.exp2(other_peak - new_peak)
            acc = acc * shrink[:, None] + other * other_shrink[:, None]
            weight = weight * shrink + other_weight * other_shrink
            peak = new_peak
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    target = out + request.to(tl.int64) * out_stride_row + q_head[:, None] * out_stride_head + dim[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=stored)
