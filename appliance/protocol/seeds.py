"""Seeds for requests that come without one."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable

_BITS = 63


def seed_source(seed: int | None) -> Callable[[], int]:
    """A function whose every call gives another seed in [0, 2**63).

    With `seed` (the setting of that name) the series is always the same one, else nobody can foresee it.
    """
    generator = random.SystemRandom() if seed is None else random.Random(seed)
    return functools.partial(generator.getrandbits, _BITS)
