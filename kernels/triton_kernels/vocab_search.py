"""Finding the most likely tokens of a row without sorting it: what sampling and log-probabilities share.

A scan of the logits keeps the maximum of each group of VOCAB_GROUP neighbouring tokens. The k-th largest of these is at
most the k-th largest logit, so the tokens that reach it hold the k most likely, and not many more; they lie in the few
groups whose maximum reaches it, and nothing else needs to be read again.
"""

from __future__ import annotations

import triton
import triton.language as tl

# A row's candidates; ranking them costs the square of their number.
CAPACITY = 1024
LOWEST_KEY = tl.constexpr(-2139095040)  # of the lowest finite float32: infinite logits are never chosen


@triton.jit
def order_key(x):
    """float32 as an int32 of the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def key_value(key):
    """The float32 of an order key, any integer type."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def group_threshold(group_peaks, peak, num_groups, want, GROUPS_PAD: tl.constexpr):
    """A value that at least `want` group maxima reach, nearly the largest such; the lowest finite if there is none."""
    index = tl.arange(0, GROUPS_PAD)
    peaks = tl.load(group_peaks + index, mask=index < num_groups, other=float("-inf"))
    # Bisection over the upper half of the bits: a bfloat16 step is near enough.
    low = tl.full([], LOWEST_KEY >> 16, tl.int32)
    high = order_key(peak) >> 16
    for _ in range(16):
        middle = (low + high + 1) >> 1
        reached = tl.sum((peaks >= key_value(middle << 16)).to(tl.int32), 0) >= want
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    return key_value(low << 16)


@triton.jit
def gather_candidates(
    logits,  # pointer to the row
    group_peaks,  # pointer to the row's group maxima
    threshold,
    groups,  # pointer to scratch, [num_groups] int32
    values,  # pointers to scratch, [CAPACITY] float32 ...
    ids,  # ... and int32
    vocab,
    num_groups,
    GROUP: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write the tokens whose logit reaches `threshold`, in the order of their ids; returns how many there are.

    Those beyond CAPACITY are counted but not written.
    """
    index = tl.arange(0, GROUPS_PAD)
    peaks = tl.load(group_peaks + index, mask=index < num_groups, other=float("-inf"))
    chosen = (peaks >= threshold) & (index < num_groups)
    tl.store(groups + tl.cumsum(chosen.to(tl.int32), 0) - 1, index, mask=chosen)
    num_chosen = tl.sum(chosen.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read what these wrote
    lane = tl.arange(0, CHUNK)
    count = tl.zeros([], tl.int32)
    for start in range(0, num_chosen, CHUNK // GROUP):
        which = start + lane // GROUP
        group = tl.load(groups + which, mask=which < num_chosen, other=0)
        token = group * GROUP + lane % GROUP
        inside = (which < num_chosen) & (token < vocab)
        x = tl.load(logits + token, mask=inside, other=float("-inf")).to(tl.float32)
        taken = inside & (x >= threshold)
        place = count + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(values + place, x, mask=taken & (place < CAPACITY))
        tl.store(ids + place, token, mask=taken & (place < CAPACITY))
        count += tl.sum(taken.to(tl.int32), 0)
    tl.debug_barrier()
    return count


@triton.jit
def above(row, threshold, peak, inverse_temperature, log_min_p, vocab, TILE: tl.constexpr):
    """How many tokens of the row reach `threshold` and min-p's floor, and the sum of exp((x - peak) / T) over them."""
    lane = tl.arange(0, TILE)
    count = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab, TILE):
        x = tl.load(row + start + lane, mask=start + lane < vocab, other=float("-inf")).to(tl.float32)
        scaled = (x - peak) * inverse_temperature
        taken = (x >= threshold) & (scaled >= log_min_p)
        count += taken.to(tl.int32)
        mass += tl.where(taken, tl.exp(scaled), 0.0)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def kth_largest(row, k, peak, inverse_temperature, log_min_p, vocab, SHIFT: tl.constexpr, TILE: tl.constexpr):
    """The k-th largest logit of those that reach min-p's floor, or the lowest finite value if there are fewer.

    Bisection: a pass over the row for each bit. Logits of 16 bits leave the SHIFT lowest bits of a float32 unused.
    """
    low = tl.full([], LOWEST_KEY >> SHIFT, tl.int64)
    high = (order_key(peak) >> SHIFT).to(tl.int64)
    for _ in range(32 - SHIFT):
        middle = (low + high + 1) >> 1
        count, _mass = above(row, key_value(middle << SHIFT), peak, inverse_temperature, log_min_p, vocab, TILE)
        reached = count >= k
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle - 1)
    return key_value(low << SHIFT)
