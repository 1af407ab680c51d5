"""How long a step of the engine takes, fitted to the steps of lately."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

REMEMBERED_STEPS = 256  # of each kind: with prompt tokens and without
OUTLIER = 8.0  # times the median: a step that waited for a compiler says nothing about the next one
_STIFFNESS = 1e-3  # of the slopes, relative to the spread of the data: what never varied gets no slope


@dataclass(frozen=True, slots=True)
class StepPace:
    """seconds of a step = base + per_sequence * sequences + per_prompt_token * prompt tokens."""

    base: float
    per_sequence: float
    per_prompt_token: float

    def seconds(self, sequences: float, prompt_tokens: float = 0.0) -> float:
        return self.base + self.per_sequence * sequences + self.per_prompt_token * prompt_tokens


class StepTimes:
    """Remembers steps; adding one costs next to nothing, `pace` is for when it is asked."""

    def __init__(self) -> None:
        self._with_prompts: deque[tuple[int, int, float]] = deque(maxlen=REMEMBERED_STEPS)
        self._decoding: deque[tuple[int, int, float]] = deque(maxlen=REMEMBERED_STEPS)

    def add(self, sequences: int, prompt_tokens: int, seconds: float) -> None:
        (self._with_prompts if prompt_tokens else self._decoding).append((sequences, prompt_tokens, seconds))

    def pace(self) -> StepPace | None:
        """Least squares with slopes that are held near zero; None until a step was seen."""
        steps = [*_without_outliers(self._decoding), *_without_outliers(self._with_prompts)]
        if not steps:
            return None
        count = len(steps)
        mean_b, mean_p, mean_s = (sum(step[i] for step in steps) / count for i in range(3))
        bb = pp = bp = bs = ps = 0.0
        for sequences, prompt_tokens, seconds in steps:
            b, p, s = sequences - mean_b, prompt_tokens - mean_p, seconds - mean_s
            bb, pp, bp, bs, ps = bb + b * b, pp + p * p, bp + b * p, bs + b * s, ps + p * s
        bb += _STIFFNESS * (bb + count * max(mean_b, 1.0) ** 2)
        pp += _STIFFNESS * (pp + count * max(mean_p, 1.0) ** 2)
        determinant = bb * pp - bp * bp
        per_sequence = (bs * pp - ps * bp) / determinant
        per_prompt_token = (ps * bb - bs * bp) / determinant
        # A step with more in it is not faster: a negative slope is noise, and the other one then explains all.
        if per_sequence < 0.0:
            per_sequence, per_prompt_token = 0.0, max(0.0, ps / pp)
        elif per_prompt_token < 0.0:
            per_sequence, per_prompt_token = max(0.0, bs / bb), 0.0
        base = mean_s - per_sequence * mean_b - per_prompt_token * mean_p
        if base < 0.0:
            base, per_sequence = 0.0, (mean_s - per_prompt_token * mean_p) / max(mean_b, 1.0)
        return StepPace(base, max(0.0, per_sequence), per_prompt_token)


def _without_outliers(steps: deque[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    if not steps:
        return []
    limit = OUTLIER * statistics.median(seconds for _, _, seconds in steps)
    return [step for step in steps if step[2] <= limit]
