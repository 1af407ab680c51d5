"""Choosing tokens on the device, with the definition of the CPU: the largest of logit / temperature + Gumbel noise.

The noise depends on a request's seed, the position and the token alone, so a draw does not depend on the batch, the
card, or where the request ran before; and as each token has its own, a logit that is rounded differently seldom changes
which one wins. Both devices choose the same token for the same logits, but for ties within rounding.

A scan finds each tile's winner, tile by tile of the vocabulary in the same way for every batch size. What is cut by
min-p, top-k or top-p is known only afterwards, so rows with cuts have their noise added in a second step, to the few
tokens that are left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from appliance_kernels.triton_kernels.draws import SamplingRows, draw_key, gumbel
from appliance_kernels.triton_kernels.elementwise_configs import VOCAB_GROUP, VOCAB_TILE, VOCAB_WARPS
from appliance_kernels.triton_kernels.truncated_sampling import sample_truncated

# What `status` says of a row.
OK, BROKEN = 0, 1


@triton.jit(do_not_specialize_on_alignment=["rows"])
def _scan_kernel(
    logits,
    rows,
    temperature,
    top_k,
    top_p,
    seed,
    num_tokens,
    peaks,
    best,
    scores,
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
    """One program a tile of a row: its maximum (NaN if a logit is NaN), and which token is best; for rows that are
    drawn from that is with noise, and its score is relative to the maximum. With top-k or top-p: what decides later."""
    tile = tl.program_id(0)
    i = tl.program_id(1).to(tl.int64)
    token = tile * TILE + tl.arange(0, TILE)
    x = tl.load(logits + i * logits_stride + token, mask=token < vocab, other=float("-inf")).to(tl.float32)
    broken = tl.max((x != x).to(tl.int32), 0)
    x = tl.where(x == x, x, float("-inf"))
    peak = tl.max(x, 0)
    place = i * num_tiles + tile
    tl.store(peaks + place, tl.where(broken > 0, float("nan"), peak))
    noisy = 0
    if SAMPLED:
        row = tl.load(rows + i).to(tl.int64)
        held = row >= 0
        heat = tl.load(temperature + row, mask=held, other=0.0)
        cut = (tl.load(top_k + row, mask=held, other=0) > 0) | (tl.load(top_p + row, mask=held, other=1.0) < 1.0)
        noisy = (heat > 0.0).to(tl.int32)
        scaled = (x - tl.where(peak == float("-inf"), 0.0, peak)) * (1.0 / tl.where(heat > 0.0, heat, 1.0))
        if TRUNCATED:
            in_groups = tl.max(tl.reshape(x, [TILE // GROUP, GROUP]), 1)
            group = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
            tl.store(group_peaks + i * num_groups + group, in_groups, mask=group < num_groups)
            if cut:
                noisy = 0
                tl.store(sums + place, tl.sum(tl.exp(scaled), 0))
        if noisy > 0:
            low, high = draw_key(tl.load(seed + row), tl.load(num_tokens + row))
            score = scaled + gumbel(token, low, high)
            top = tl.max(score, 0)
            tl.store(scores + place, top)
            tl.store(best + place, tl.min(tl.where(score == top, token, vocab - 1), 0))
        else:
            tl.store(scores + place, 0.0)
    if noisy == 0:
        tl.store(best + place, tl.min(tl.where(x == peak, token, vocab - 1), 0))


# one compilation, wherever the caller's tensors begin in larger ones
@triton.jit(do_not_specialize_on_alignment=["rows", "tokens", "status"])
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
    scores,
    tokens,
    status,
    logits_stride,
    vocab,
    num_tiles,
    SAMPLED: tl.constexpr,
    TILES_PAD: tl.constexpr,
    TILE: tl.constexpr,
):
    """One program a row: the greedy token, or the draw from all tokens that reach min-p's floor."""
    i = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES_PAD)
    inside = tile < num_tiles
    tile_peaks = tl.load(peaks + i * num_tiles + tile, mask=inside, other=float("-inf"))
    tile_best = tl.load(best + i * num_tiles + tile, mask=inside, other=0)
    broken = tl.max((tile_peaks != tile_peaks).to(tl.int32), 0) > 0
    tile_peaks = tl.where(tile_peaks == tile_peaks, tile_peaks, float("-inf"))
    peak = tl.max(tile_peaks, 0)
    flag = (broken | (peak == float("inf")) | (peak == float("-inf"))).to(tl.int32)
    tl.store(status + i, flag)
    score = tile_peaks - peak
    if SAMPLED:
        row = tl.load(rows + i).to(tl.int64)
        held = row >= 0
        heat = tl.load(temperature + row, mask=held, other=0.0)
        inverse = 1.0 / tl.where(heat > 0.0, heat, 1.0)
        # a tile without a finite logit has no score of its own
        own = tl.load(scores + i * num_tiles + tile, mask=inside, other=0.0)
        score = tl.where(tile_peaks == float("-inf"), float("-inf"), score * inverse + own)
    chosen = tl.min(tl.where(inside & (score == tl.max(score, 0)), tile_best, vocab - 1), 0)
    if SAMPLED:
        cut = (tl.load(top_k + row, mask=held, other=0) > 0) | (tl.load(top_p + row, mask=held, other=1.0) < 1.0)
        if (heat > 0.0) & (flag == 0) & (cut == 0):
            floor = tl.load(min_p + row, mask=held, other=0.0)
            if floor > 0.0:
                # The winner of all is the winner of those that are kept, if it is kept.
                log_floor = tl.log(floor)
                its_logit = tl.load(logits + i * logits_stride + chosen).to(tl.float32)
                if (its_logit - peak) * inverse < log_floor:
                    low, high = draw_key(tl.load(seed + row), tl.load(num_tokens + row))
                    lane = tl.arange(0, TILE)
                    most = tl.full([], float("-inf"), tl.float32)
                    for t in range(num_tiles):
                        tile_peak = tl.max(tl.where(tile == t, tile_peaks, float("-inf")), 0)
                        if (tile_peak - peak) * inverse >= log_floor:
                            token = t * TILE + lane
                            x = tl.load(logits + i * logits_stride + token, mask=token < vocab, other=float("-inf"))
                            scaled = (x.to(tl.float32) - peak) * inverse
                            noisy = tl.where(scaled >= log_floor, scaled + gumbel(token, low, high), float("-inf"))
                            here = tl.max(noisy, 0)
                            if here > most:
                                most = here
                                chosen = tl.min(tl.where(noisy == here, token, vocab - 1), 0)
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
    left, renormalized. Tokens of equal logits stay or go together: top-k keeps all that equal the k-th, top-p all that
    the more likely ones leave short of p. `truncated` says whether any row has top-k or top-p; without it such a row's
    token means nothing. Logits and result as in `greedy`; with nothing but greedy rows, `greedy` is faster.
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
    scores = torch.empty_like(peaks)
    sums = torch.empty_like(peaks) if truncated else scores
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
        params.top_k,
        params.top_p,
        params.seed,
        params.num_tokens,
        peaks,
        best,
        scores,
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
        scores,
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
