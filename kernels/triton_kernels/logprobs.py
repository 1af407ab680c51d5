"""Log-probabilities of given tokens and of the most likely ones, without a float32 copy of the logits or a sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.elementwise_configs import VOCAB_GROUP, VOCAB_TILE, VOCAB_WARPS
from appliance_kernels.triton_kernels.vocab_search import CAPACITY, gather_candidates, group_threshold

MAX_TOP = 64  # of the most likely tokens, with which few candidates always suffice


@triton.jit(do_not_specialize_on_alignment=["index", "tokens"])
def _scan_kernel(
    logits,
    index,
    tokens,
    peaks,
    sums,
    greater,
    group_peaks,
    logits_stride,
    vocab,
    num_tiles,
    num_groups,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program a tile of a row: its maximum, sum of exponentials, and how many logits exceed the given token's."""
    tile = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64)
    row = logits + tl.load(index + i).to(tl.int64) * logits_stride
    own = tl.load(row + tl.load(tokens + i)).to(tl.float32)
    token = tile * TILE + tl.arange(0, TILE)
    x = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    in_groups = tl.max(tl.reshape(x, [TILE // GROUP, GROUP]), 1)
    group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    tl.store(group_peaks + i * num_groups + group, in_groups, mask=group < num_groups)
    peak = tl.max(x, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    place = i * num_tiles + tile
    tl.store(peaks + place, peak)
    tl.store(sums + place, tl.sum(tl.exp(x - base), 0))
    tl.store(greater + place, tl.sum((x > own).to(tl.int32), 0))


# one compilation, whatever the number
@triton.jit(do_not_specialize=["top"], do_not_specialize_on_alignment=["index", "tokens"])
def _finish_kernel(
    logits,
    index,
    tokens,
    peaks,
    sums,
    greater,
    group_peaks,
    groups,
    values,
    ids,
    own_out,
    rank_out,
    top_out,
    top_ids_out,
    logits_stride,
    vocab,
    num_tiles,
    num_groups,
    top,
    TILES_PAD: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program a row: the sum over the tiles, and the `top` most likely tokens in order."""
    i = tl.program_id(0).to(tl.int64)
    row = logits + tl.load(index + i).to(tl.int64) * logits_stride
    tile = tl.arange(0, TILES_PAD)
    inside = tile < num_tiles
    tile_peaks = tl.load(peaks + i * num_tiles + tile, mask=inside, other=float("-inf"))
    weight = tl.load(sums + i * num_tiles + tile, mask=inside, other=0.0)
    peak = tl.max(tile_peaks, 0)
    normalizer = peak + tl.log(tl.sum(weight * tl.exp(tile_peaks - peak), 0))
    own = tl.load(row + tl.load(tokens + i)).to(tl.float32)
    tl.store(own_out + i, own - normalizer)
    tl.store(rank_out + i, tl.sum(tl.load(greater + i * num_tiles + tile, mask=inside, other=0), 0) + 1)
    if top > 0:
        want = top
        if vocab <= CAPACITY:
            want = num_groups + 1  # all tokens are candidates
        threshold = group_threshold(group_peaks + i * num_groups, peak, num_groups, want, GROUPS_PAD)
        row_values = values + i * CAPACITY
        row_ids = ids + i * CAPACITY
        found = gather_candidates(
            row,
            group_peaks + i * num_groups,
            threshold,
            groups + i * num_groups,
            row_values,
            row_ids,
            vocab,
            num_groups,
            GROUP,
            GROUPS_PAD,
            CAPACITY,
            TILE,
        )
        if (found >= top) & (found <= CAPACITY):
            lane = tl.arange(0, CAPACITY)
            value = tl.load(row_values + lane, mask=lane < found, other=float("-inf"))
            token = tl.load(row_ids + lane, mask=lane < found, other=0)
            rank = tl.zeros([CAPACITY], tl.int32)
            for start in range(0, found, STEP):
                other = start + tl.arange(0, STEP)
                other_value = tl.load(row_values + other, mask=other < found, other=float("-inf"))
                ahead = (other_value[None, :] > value[:, None]) | (
                    (other_value[None, :] == value[:, None]) & (other[None, :] < lane[:, None])
                )
                rank += tl.sum(ahead.to(tl.int32), 1)
            wanted = (lane < found) & (rank < top)
            tl.store(top_out + i * top + rank, value - normalizer, mask=wanted)
            tl.store(top_ids_out + i * top + rank, token.to(top_ids_out.dtype.element_ty), mask=wanted)
        else:
            # More equal logits than fit, or fewer finite ones than wanted: one after the other, each by a look at all.
            last = float("inf")
            last_token = -1
            for n in range(top):
                best = float("-inf")
                best_token = vocab
                for start in range(0, vocab, TILE):
                    token = start + tl.arange(0, TILE)
                    x = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
                    left = (token < vocab) & ((x < last) | ((x == last) & (token > last_token)))
                    here = tl.max(tl.where(left, x, float("-inf")), 0)
                    here_token = tl.min(tl.where(left & (x == here), token, vocab), 0)
                    better = (here > best) | (best_token == vocab)
                    best_token = tl.where(better, here_token, best_token)
                    best = tl.where(better, here, best)
                tl.store(top_out + i * top + n, best - normalizer)
                tl.store(top_ids_out + i * top + n, tl.minimum(best_token, vocab - 1).to(top_ids_out.dtype.element_ty))
                last = best
                last_token = best_token


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, top: int, *, index: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Meaning as `reference.token_logprobs`: natural logarithms of the softmax, in float32.

    logits [N, V] bfloat16, float16 or float32, rows contiguous, as the model made them; `index` [M] integers picks rows
    (None: all, M = N); tokens [M] integers; top ≤ min(V, MAX_TOP). Returns, for each: the token's log-probability [M]
    float32; its rank [M] int32, 1 for the most likely; the `top` largest log-probabilities [M, top] float32,
    descending, and their ids [M, top] int64, lowest first among equals. A row with a NaN has no meaning and does
    no harm.
    """
    count, (_, vocab) = tokens.shape[0], logits.shape
    if logits.stride(1) != 1:
        raise ValueError("log-probabilities need logits whose rows are contiguous")
    if not 0 <= top <= min(vocab, MAX_TOP):
        raise ValueError(f"top is {top}; it must lie between 0 and {min(vocab, MAX_TOP)}")
    device = logits.device
    own = torch.empty(count, dtype=torch.float32, device=device)
    ranks = torch.empty(count, dtype=torch.int32, device=device)
    best = torch.empty(count, top, dtype=torch.float32, device=device)
    best_ids = torch.zeros(count, top, dtype=torch.int64, device=device)
    if not count:
        return own, ranks, best, best_ids
    index = torch.arange(count, dtype=torch.int32, device=device) if index is None else index
    num_tiles, num_groups = triton.cdiv(vocab, VOCAB_TILE), triton.cdiv(vocab, VOCAB_GROUP)
    peaks = torch.empty(count, num_tiles, dtype=torch.float32, device=device)
    sums = torch.empty_like(peaks)
    greater = torch.empty(count, num_tiles, dtype=torch.int32, device=device)
    group_peaks = torch.empty(count, num_groups, dtype=torch.float32, device=device)
    groups = torch.empty(count, num_groups, dtype=torch.int32, device=device)
    values = torch.empty(count, CAPACITY, dtype=torch.float32, device=device)
    ids = torch.empty(count, CAPACITY, dtype=torch.int32, device=device)
    _scan_kernel[(num_tiles, count)](
        logits,
        index,
        tokens,
        peaks,
        sums,
        greater,
        group_peaks,
        logits.stride(0),
        vocab,
        num_tiles,
        num_groups,
        TILE=VOCAB_TILE,
        GROUP=VOCAB_GROUP,
        num_warps=VOCAB_WARPS,
    )
    _finish_kernel[(count,)](
        logits,
        index,
        tokens,
        peaks,
        sums,
        greater,
        group_peaks,
        groups,
        values,
        ids,
        own,
        ranks,
        best,
        best_ids,
        logits.stride(0),
        vocab,
        num_tiles,
        num_groups,
        top,
        TILES_PAD=triton.next_power_of_2(num_tiles),
        GROUPS_PAD=triton.next_power_of_2(num_groups),
        GROUP=VOCAB_GROUP,
        CAPACITY=CAPACITY,
        TILE=VOCAB_TILE,
        STEP=8,
        num_warps=8,
    )
    return own, ranks, best, best_ids
