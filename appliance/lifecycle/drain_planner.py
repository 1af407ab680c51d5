"""Which sequences an engine goes on with when it has to end at a deadline, and which it sheds so that others can end.

Plain arithmetic on plain data; docs/drain.md has what it achieves, by simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from appliance.lifecycle.drain_forecast import Load, Machine, Times, forecast
from appliance.lifecycle.output_lengths import OutputLengths

# Whoever has less of a chance is told now and has the rest of the time to go on elsewhere.
LEAST_CHANCE = 0.02
# Nobody is given up whom so much more time would save: others end early, and make room.
HOPE = 1.15
# What shedding gains has to be so much more than what it costs, both in requests that end: a forecast is no more than
# that, and whoever is shed for nothing is lost. Where lengths are known it is nearly exact.
LEAST_GAIN = 0.5
GAIN_FOR_LOSS, GAIN_FOR_KNOWN_LOSS = 2.0, 1.0
ENOUGH = 0.98  # of all end in time as things are: no need to look for better
COARSE_SIZES, FINER = 12, 3  # sizes of what is kept that are tried first, and how much closer the next ones are
# A new request has other machines to go to, so it is taken only if it most probably ends here.
ADMITTED_LENGTH_QUANTILE = 0.9
ADMITTED_TIME_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Pending:
    """One sequence that has not ended."""

    request_id: str
    to_compute: int  # known tokens without keys and values; 1 while it decodes
    generated: int  # tokens so far
    known: int  # tokens, prompt and output
    least_left: int  # tokens that it certainly still gets: 1, or more with `min_tokens` and `ignore_eos`
    most_left: int  # tokens, by `max_tokens` and the model's context
    has_place: bool  # in the batch


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request that comes now can expect."""

    start: float  # seconds until its prompt's turn
    seconds_per_prompt_token: float
    seconds_per_token: float
    typical_tokens: float  # nine of ten outputs are no longer

    def seconds(self, prompt_tokens: int, least_tokens: int, most_tokens: int) -> float:
        """Until it most probably has ended."""
        tokens = max(least_tokens, min(most_tokens, self.typical_tokens))
        return self.start + prompt_tokens * self.seconds_per_prompt_token + tokens * self.seconds_per_token

    def fits(self, prompt_tokens: int, least_tokens: int, most_tokens: int, seconds_left: float) -> bool:
        return self.seconds(prompt_tokens, least_tokens, most_tokens) <= ADMITTED_TIME_SHARE * seconds_left


def to_shed(pending: Sequence[Pending], machine: Machine, lengths: OutputLengths, seconds_left: float) -> list[str]:
    """Ids of the sequences to end now. `pending` is in the order in which they get places.

    Shed are those that cannot end in time, and, while others wait for places, the most costly ones for as long as that
    lets more of the others end.
    """
    if seconds_left <= 0.0:
        return [one.request_id for one in pending]
    expected = [_expected(one, lengths) for one in pending]

    def chances(kept: Sequence[int], hope: float = 1.0) -> list[float]:
        """Of each of `kept`, if they are all that runs: that it ends in time, 0 to 1."""
        times = forecast([_load(pending[i], expected[i]) for i in kept], machine)
        return [
            _chance(pending[i], expected[i], own, machine, lengths, seconds_left * hope)
            for i, own in zip(kept, times, strict=True)
        ]

    everything = range(len(pending))
    kept, found = list(everything), chances(everything)
    if not all(one.has_place for one in pending) and sum(found) < ENOUGH * len(pending):
        token_seconds = machine.pace.seconds(min(len(pending), machine.max_num_seqs))
        costs = [
            one.to_compute * machine.pace.per_prompt_token + tokens * token_seconds
            for one, tokens in zip(pending, expected, strict=True)
        ]
        cheapest = sorted(everything, key=costs.__getitem__)
        size = _best_size(len(pending), lambda size: sum(chances(sorted(cheapest[:size]))))
        cheap = sorted(cheapest[:size])
        dropped = cheapest[size:]
        gain = sum(chances(cheap)) - sum(found[i] for i in cheap)
        if gain > LEAST_GAIN + sum(found[i] * _gain_for_loss(pending[i]) for i in dropped):
            kept = cheap
    hopes = chances(kept, HOPE)
    stays = {i for i, chance in zip(kept, hopes, strict=True) if chance >= LEAST_CHANCE}
    return [one.request_id for i, one in enumerate(pending) if i not in stays]


def outlook(pending: Sequence[Pending], machine: Machine, lengths: OutputLengths) -> Outlook:
    """For a request behind all of `pending`."""
    loads = [_load(one, _expected(one, lengths)) for one in pending]
    times = forecast([*loads, Load(1, 1, 1.0, False)], machine)
    batch = min(len(pending) + 1, machine.max_num_seqs)
    return Outlook(
        start=times[-1].first_token,
        seconds_per_prompt_token=machine.pace.seconds(batch, machine.max_num_batched_tokens)
        / machine.max_num_batched_tokens,
        seconds_per_token=machine.pace.seconds(batch),
        typical_tokens=lengths.quantile(ADMITTED_LENGTH_QUANTILE),
    )


def _best_size(count: int, value: Callable[[int], float]) -> int:
    """The size from 1 to `count` with the greatest value: of a few, then of a few around the best, and so on."""
    value = cache(value)
    step = max(1, count // COARSE_SIZES)
    best = max(range(count, 0, -step), key=value)
    while step > 1:
        finer = max(1, step // FINER)
        best = max(range(min(count, best + step), max(0, best - step), -finer), key=value)
        step = finer
    return best


def _expected(one: Pending, lengths: OutputLengths) -> float:
    return max(float(one.least_left), lengths.expected(one.generated, one.most_left))


def _gain_for_loss(one: Pending) -> float:
    return GAIN_FOR_KNOWN_LOSS if one.least_left == one.most_left else GAIN_FOR_LOSS


def _chance(
    one: Pending, expected: float, times: Times, machine: Machine, lengths: OutputLengths, seconds_left: float
) -> float:
    """That it ends in time."""
    if times.first_token > seconds_left:
        return 0.0
    token_seconds = (times.end - times.first_token) / expected or machine.pace.seconds(1)
    tokens = 1.0 + (seconds_left - times.first_token) / token_seconds
    if tokens >= one.most_left:
        return 1.0
    return lengths.chance(one.generated, tokens) if tokens >= one.least_left else 0.0


def _load(one: Pending, to_generate: float) -> Load:
    return Load(one.to_compute, one.known, to_generate, one.has_place)
