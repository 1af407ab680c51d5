"""Draws from the most likely tokens of a row, by top-k and top-p (Holtzman et al. 2020), without sorting the row.

Whether a token stays depends on how many tokens have a larger logit and how much probability they hold. A first kernel
counts that for the few hundred candidates that nearly always decide. What is left, a top-k beyond their number or a
nucleus so wide that they do not fill it, a second kernel decides by passes over the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.draws import SamplingRows, draw_key, gumbel
from appliance_kernels.triton_kernels.elementwise_configs import VOCAB_GROUP
from appliance_kernels.triton_kernels.vocab_search import (
    CAPACITY,
    LOWEST_KEY,
    above,
    gather_candidates,
    group_threshold,
    key_value,
    kth_largest,
    order_key,
)

# Groups whose maxima bound the candidates for top-p alone: they give some 450 candidates of 150,000 tokens.
NUCLEUS_GROUPS = 384
# Bits that a 16-bit logit leaves unused in a float32.
UNUSED_BITS = {torch.float32: 0, torch.bfloat16: 16, torch.float16: 13}


@triton.jit(do_not_specialize_on_alignment=["rows", "tokens"])
def _sample_candidates_kernel(
    logits,
    rows,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    num_tokens,
    peaks,
    sums,
    group_peaks,
    groups,
    values,
    ids,
    tokens,
    pending,
    logits_stride,
    vocab,
    num_tiles,
    num_groups,
    nucleus_groups,
    TILES_PAD: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    GROUP: tl.constexpr,
    CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
):
    """One program a row. Rows that candidates cannot decide are marked `pending`."""
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + i).to(tl.int64)
    held = row >= 0
    heat = tl.load(temperature + row, mask=held, other=0.0)
    most = tl.load(top_k + row, mask=held, other=0)
    nucleus = tl.load(top_p + row, mask=held, other=1.0)
    undecided = 0
    if (heat > 0.0) & ((most > 0) | (nucleus < 1.0)):
        inverse = 1.0 / heat
        tile = tl.arange(0, TILES_PAD)
        tile_peaks = tl.load(peaks + i * num_tiles + tile, mask=tile < num_tiles, other=float("-inf"))
        peak = tl.max(tl.where(tile_peaks == tile_peaks, tile_peaks, float("-inf")), 0)
        floor = tl.load(min_p + row, mask=held, other=0.0)
        log_floor = tl.where(floor > 0.0, tl.log(floor), float("-inf"))
        want = tl.where(most > 0, most, nucleus_groups)
        if vocab <= CAPACITY:
            want = num_groups + 1  # all tokens are candidates
        threshold = group_threshold(group_peaks + i * num_groups, peak, num_groups, want, GROUPS_PAD)
        row_values = values + i * CAPACITY
        row_ids = ids + i * CAPACITY
        found = gather_candidates(
            logits + i * logits_stride,
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
            CHUNK,
        )
        count = tl.minimum(found, CAPACITY)
        lane = tl.arange(0, CAPACITY)
        value = tl.load(row_values + lane, mask=lane < count, other=float("-inf"))
        token = tl.load(row_ids + lane, mask=lane < count, other=0)
        scaled = (value - peak) * inverse
        mass = tl.where((lane < count) & (scaled >= log_floor), tl.exp(scaled), 0.0)
        rank = tl.zeros([CAPACITY], tl.int32)  # equals have the same
        before = tl.zeros([CAPACITY], tl.float32)
        for start in range(0, count, STEP):
            other = start + tl.arange(0, STEP)
            other_value = tl.load(row_values + other, mask=other < count, other=float("-inf"))
            other_scaled = (other_value - peak) * inverse
            other_mass = tl.where((other < count) & (other_scaled >= log_floor), tl.exp(other_scaled), 0.0)
            ahead = other_value[None, :] > value[:, None]
            rank += tl.sum(ahead.to(tl.int32), 1)
            before += tl.sum(tl.where(ahead, other_mass[None, :], 0.0), 1)

        kept = (lane < count) & (rank < tl.where(most > 0, most, CAPACITY))
        kept_mass = tl.sum(tl.where(kept, mass, 0.0), 0)
        # Top-p counts over what top-k left: over all tokens without it.
        covered = (threshold <= key_value(tl.full([], LOWEST_KEY, tl.int32))) | (
            (threshold - peak) * inverse <= log_floor
        )
        weight = tl.load(sums + i * num_tiles + tile, mask=tile < num_tiles, other=0.0)
        everything = tl.sum(weight * tl.exp((tile_peaks - peak) * inverse), 0)
        whole = tl.where((most > 0) | covered, kept_mass, everything)
        decided = (found <= CAPACITY) & (
            (most > 0) | covered | ((floor <= 0.0) & (nucleus < 1.0) & (kept_mass >= nucleus * whole))
        )
        # A token stays when those more likely do not reach p yet; the most likely one always does.
        kept = kept & ((before < tl.where(nucleus < 1.0, nucleus * whole, float("inf"))) | (rank == 0))
        low, high = draw_key(tl.load(seed + row), tl.load(num_tokens + row))
        noisy = tl.where(kept & (scaled >= log_floor), scaled + gumbel(token, low, high), float("-inf"))
        chosen = tl.min(tl.where(noisy == tl.max(noisy, 0), token, vocab - 1), 0)
        if decided:
            tl.store(tokens + i, chosen.to(tokens.dtype.element_ty))
        undecided = tl.where(decided, 0, 1)
    tl.store(pending + i, undecided)


@triton.jit(do_not_specialize_on_alignment=["rows", "tokens"])
def _sample_by_search_kernel(
    logits,
    rows,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    num_tokens,
    peaks,
    tokens,
    pending,
    logits_stride,
    vocab,
    num_tiles,
    TILES_PAD: tl.constexpr,
    SHIFT: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program a row; those that are not pending end at once.

    The winner of what top-k left is the winner of the nucleus too if it lies there. If not, neither does anything as
    unlikely, and the rest is tried again: seldom more than once or twice.
    """
    i = tl.program_id(0).to(tl.int64)
    if tl.load(pending + i) > 0:
        tile = tl.arange(0, TILES_PAD)
        tile_peaks = tl.load(peaks + i * num_tiles + tile, mask=tile < num_tiles, other=float("-inf"))
        peak = tl.max(tl.where(tile_peaks == tile_peaks, tile_peaks, float("-inf")), 0)
        held = tl.load(rows + i).to(tl.int64)
        inverse = 1.0 / tl.load(temperature + held)
        most = tl.load(top_k + held)
        nucleus = tl.load(top_p + held)
        floor = tl.load(min_p + held)
        log_floor = tl.where(floor > 0.0, tl.log(floor), float("-inf"))
        low, high = draw_key(tl.load(seed + held), tl.load(num_tokens + held))
        row = logits + i * logits_stride
        threshold = key_value(tl.full([], LOWEST_KEY, tl.int32))
        if most > 0:
            threshold = kth_largest(row, most, peak, inverse, log_floor, vocab, SHIFT, TILE)
        _, whole = above(row, threshold, peak, inverse, log_floor, vocab, TILE)
        lane = tl.arange(0, TILE)
        chosen = tl.zeros([], tl.int32)
        undecided = tl.full([], 1, tl.int32)
        while undecided > 0:
            best = tl.full([TILE], float("-inf"), tl.float32)
            where_best = tl.full([TILE], 0, tl.int32)
            for start in range(0, vocab, TILE):
                token = start + lane
                x = tl.load(row + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
                scaled = (x - peak) * inverse
                left = (x >= threshold) & (scaled >= log_floor)
                noisy = tl.where(left, scaled + gumbel(token, low, high), float("-inf"))
                where_best = tl.where(noisy > best, token, where_best)
                best = tl.maximum(best, noisy)
            chosen = tl.min(tl.where(best == tl.max(best, 0), where_best, vocab - 1), 0)
            threshold = key_value(order_key(tl.load(row + chosen).to(tl.float32)) + 1)  # all larger logits reach it
            count, mass = above(row, threshold, peak, inverse, log_floor, vocab, TILE)
            undecided = ((nucleus < 1.0) & (count > 0) & (mass >= nucleus * whole)).to(tl.int32)
        tl.store(tokens + i, chosen.to(tokens.dtype.element_ty))


def sample_truncated(
    logits: torch.Tensor,
    rows: torch.Tensor,
    params: SamplingRows,
    peaks: torch.Tensor,
    sums: torch.Tensor,
    group_peaks: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    """Write the token of each row of `logits` [N, V] that has top-k or top-p; the others keep theirs.

    The scan of the logits gave, for tiles and groups of the vocabulary, `peaks` and `sums` [N, tiles] float32 (maxima;
    sums of exp((x - maximum) / T)) and `group_peaks` [N, groups] float32.
    """
    count, vocab = logits.shape
    device = logits.device
    num_tiles, num_groups = peaks.shape[1], group_peaks.shape[1]
    groups = torch.empty(count, num_groups, dtype=torch.int32, device=device)
    values = torch.empty(count, CAPACITY, dtype=torch.float32, device=device)
    ids = torch.empty(count, CAPACITY, dtype=torch.int32, device=device)
    pending = torch.empty(count, dtype=torch.int32, device=device)
    _sample_candidates_kernel[(count,)](
        logits,
        rows,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.num_tokens,
        peaks,
        sums,
        group_peaks,
        groups,
        values,
        ids,
        tokens,
        pending,
        logits.stride(0),
        vocab,
        num_tiles,
        num_groups,
        min(NUCLEUS_GROUPS, max(num_groups // 3, 1)),
        TILES_PAD=triton.next_power_of_2(num_tiles),
        GROUPS_PAD=triton.next_power_of_2(num_groups),
        GROUP=VOCAB_GROUP,
        CAPACITY=CAPACITY,
        CHUNK=4096,
        STEP=8,
        num_warps=8,
    )
    _sample_by_search_kernel[(count,)](
        logits,
        rows,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.num_tokens,
        peaks,
        tokens,
        pending,
        logits.stride(0),
        vocab,
        num_tiles,
        TILES_PAD=triton.next_power_of_2(num_tiles),
        SHIFT=UNUSED_BITS[logits.dtype],
        TILE=4096,
        num_warps=16,
    )
