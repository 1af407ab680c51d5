"""Choosing tokens on the device, with the definition of the CPU: the cumulative distribution inverted at one number.

That number depends on a request's seed and position alone, so a draw does not depend on the batch, the card, or where
the request ran before. Inverting needs one scan of the logits and a second look at one tile of them, which is less than
the noise for every logit of the Gumbel-max method; and both devices choose the same token for the same logits, but for
a draw within rounding of the border of two tokens.

Sums are made tile by tile of the vocabulary, in the same order for every batch size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.draws import SamplingRows, uniform
from appliance_kernels.triton_kernels.elementwise_configs import VOCAB_GROUP, VOCAB_TILE, VOCAB_WARPS
from appliance_kernels.triton_kernels.truncated_sampling import sample_truncated

# What `status` says of a row.
OK, BROKEN = 0, 1


@triton.jit
def _scan_kernel(
    logits,
    rows,
    temperature,
    peaks,
    best,
    sums,
    group_peaks,
    logits_stride,
    vocab,
    num_tiles,
    num_groups,
    SAMPLED: tl.constexpr,
    TRUNCATED: tl.constexpr,
    TILE: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program a tile of a row: its maximum (NaN if a logit is NaN), where it is, and the sum of exponentials."""
    tile = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64)
    token = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits + i * logits_stride + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    broken = tl.max((x != x).to(tl.int32), 0)
    x = tl.where(x == x, x, float("-inf"))
    if TRUNCATED:
        in_groups = tl.max(tl.reshape(x, [TILE // GROUP, GROUP]), 1)
        group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
        tl.store(group_peaks + i * num_groups + group, in_groups, mask=group < num_groups)
    peak = tl.max(x, 0)
    first = tl.min(tl.where(x == peak, token, vocab - 1), 0)
    place = i * num_tiles + tile
    tl.store(peaks + place, tl.where(broken > 0, float("nan"), peak))
    tl.store(best + place, first)
    if SAMPLED:
        row = tl.load(rows + i)
        heat = tl.load(temperature + row, mask=row >= 0, other=0.0)
        if heat > 0.0:
            base = tl.where(peak == float("-inf"), 0.0, peak)
            tl.store(sums + place, tl.sum(tl.exp((x - base) * (1.0 / heat)), 0))


@triton.jit
def _choose_kernel(
    logits,
    rows,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    num_tokens,
    peaks,
    best,
    sums,
    tokens,
    status,
    logits_stride,
    vocab,
    num_tiles,
    SAMPLED: tl.constexpr,
    TILES_PAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program a row: the greedy token, or the draw over all tokens that reach min-p's floor."""
    i = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PAD)
    tile_peaks = tl.load(peaks + i * num_tiles + tile, mask=tile < num_tiles, other=float("-inf"))
    tile_best = tl.load(best + i * num_tiles + tile, mask=tile < num_tiles, other=0)
    broken = tl.max((tile_peaks != tile_peaks).to(tl.int32), 0) > 0
    tile_peaks = tl.where(tile_peaks == tile_peaks, tile_peaks, float("-inf"))
    peak = tl.max(tile_peaks, 0)
    where_best = tl.min(tl.where(tile_peaks == peak, tile, TILES_PAD - 1), 0)
    chosen = tl.sum(tl.where(tile == where_best, tile_best, 0), 0)
    flag = (broken | (peak == float("inf")) | (peak == float("-inf"))).to(tl.int32)
    tl.store(status + i, flag)
    if SAMPLED:
        row = tl.load(rows + i).to(tl.int64)
        held = row >= 0
        heat = tl.load(temperature + row, mask=held, other=0.0)
        cut = (tl.load(top_k + row, mask=held, other=0) > 0) | (tl.load(top_p + row, mask=held, other=1.0) < 1.0)
        if (heat > 0.0) & (flag == 0) & (cut == 0):
            inverse = 1.0 / heat
            lane = tl.arange(0, TILE)
            floor = tl.load(min_p + row, mask=held, other=0.0)
            log_floor = tl.where(floor > 0.0, tl.log(floor), float("-inf"))
            weight = tl.load(sums + i * num_tiles + tile, mask=tile < num_tiles, other=0.0)
            weight *= tl.exp((tile_peaks - peak) * inverse)
            if floor > 0.0:
                for t in range(num_tiles):
                    token = t * TILE + lane
                    x = tl.load(logits + i * logits_stride + token, mask=token < vocab, other=float("-inf"))
                    scaled = (x.to(tl.float32) - peak) * inverse
                    kept = tl.sum(tl.where(scaled >= log_floor, tl.exp(scaled), 0.0), 0)
                    weight = tl.where(tile == t, kept, weight)
            # float64: over 100,000 tokens a float32 running sum loses the tail
            mass = weight.to(tl.float64)
            running = tl.cumsum(mass, 0)
            draw = uniform(tl.load(seed + row), tl.load(num_tokens + row))
            target = draw * tl.sum(mass, 0)
            # the first tile that reaches beyond the target; if rounding leaves none, the last that has any mass
            hit = tl.min(tl.where((running > target) & (mass > 0.0), tile, TILES_PAD), 0)
            hit = tl.where(hit < TILES_PAD, hit, tl.max(tl.where(mass > 0.0, tile, 0), 0))
            before = tl.sum(tl.where(tile < hit, mass, 0.0), 0)
            token = hit * TILE + lane
            x = tl.load(logits + i * logits_stride + token, mask=token < vocab, other=float("-inf"))
            scaled = (x.to(tl.float32) - peak) * inverse
            e = tl.where(scaled >= log_floor, tl.exp(scaled), 0.0).to(tl.float64)
            reached = before + tl.cumsum(e, 0)
            found = tl.min(tl.where((reached > target) & (e > 0.0), token, vocab), 0)
            last = tl.max(tl.where(e > 0.0, token, 0), 0)
            chosen = tl.where(found < vocab, found, last)
    tl.store(tokens + i, chosen.to(tokens.dtype.element_ty))


def greedy(
    logits: torch.Tensor, *, tokens: torch.Tensor | None = None, status: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, the lowest id among equals.

    logits [N, V] bfloat16, float16 or float32, rows contiguous. Returns (tokens [N] int64 or as given, status [N]
    int32: BROKEN where a logit is NaN or +infinite, or all are -infinite; else OK). The token of a broken row is a
    valid id and means nothing.
    """
    return _run(logits, None, None, tokens, status, truncated=False)


def sample(
    logits: torch.Tensor,
    rows: torch.Tensor,
    params: SamplingRows,
    *,
    truncated: bool,
    tokens: torch.Tensor | None = None,
    status: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row of `logits`, greedy or drawn, with the parameters of `rows` [N] (negative: padding).

    Temperature scales first, then min-p, top-k and top-p (Holtzman et al. 2020) cut, each over what the one before
    left, renormalized. `truncated` says whether any row has top-k or top-p; without it such a row must not be given.
    Logits and result as in `greedy`; with nothing but greedy rows, `greedy` is faster.
    """
    return _run(logits, rows, params, tokens, status, truncated=truncated)


def _run(
    logits: torch.Tensor,
    rows: torch.Tensor | None,
    params: SamplingRows | None,
    tokens: torch.Tensor | None,
    status: torch.Tensor | None,
    *,
    truncated: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    count, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("sampling needs logits whose rows are contiguous")
    device = logits.device
    tokens = torch.empty(count, dtype=torch.int64, device=device) if tokens is None else tokens
    status = torch.empty(count, dtype=torch.int32, device=device) if status is None else status
    if not count:
        return tokens, status
    num_tiles, num_groups = triton.cdiv(vocab, VOCAB_TILE), triton.cdiv(vocab, VOCAB_GROUP)
    peaks = torch.empty(count, num_tiles, dtype=torch.float32, device=device)
    sums = torch.empty_like(peaks)
    best = torch.empty(count, num_tiles, dtype=torch.int32, device=device)
    group_peaks = torch.empty(count, num_groups, dtype=torch.float32, device=device) if truncated else sums
    sampled = params is not None
    if params is None or rows is None:
        rows = best  # not read
        params = SamplingRows(peaks, peaks, peaks, peaks, peaks, peaks)
    _scan_kernel[(num_tiles, count)](
        logits,
        rows,
        params.temperature,
        peaks,
        best,
        sums,
        group_peaks,
        logits.stride(0),
        vocab,
        num_tiles,
        num_groups,
        SAMPLED=sampled,
        TRUNCATED=truncated,
        TILE=VOCAB_TILE,
        GROUP=VOCAB_GROUP,
        num_warps=VOCAB_WARPS,
    )
    _choose_kernel[(count,)](
        logits,
        rows,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.num_tokens,
        peaks,
        best,
        sums,
        tokens,
        status,
        logits.stride(0),
        vocab,
        num_tiles,
        SAMPLED=sampled,
        TILES_PAD=triton.next_power_of_2(num_tiles),
        TILE=VOCAB_TILE,
        num_warps=VOCAB_WARPS if sampled else 1,
    )
    if truncated:
        sample_truncated(logits, rows, params, peaks, sums, group_peaks, tokens)
    return tokens, status
