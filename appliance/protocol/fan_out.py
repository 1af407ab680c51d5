"""A request for `n` sequences becomes `n` requests for one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from appliance.protocol.sampling_params import SamplingParams

SEED_LIMIT = 2**64


def fan_out(params: SamplingParams, draw_seed: Callable[[], int]) -> list[SamplingParams]:
    """The parameters of each of the `n` sequences: one seed each, the given (or a drawn) one and its successors."""
    first = draw_seed() if params.seed is None else params.seed
    seeds = [seed if seed < SEED_LIMIT else seed - SEED_LIMIT for seed in range(first, first + params.n)]
    return [msgspec.structs.replace(params, n=1, seed=seed) for seed in seeds]
