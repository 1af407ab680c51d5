"""What is sent: prompts of known length, and when each of them leaves."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from appliance.bench.vocabulary import Vocabulary

# Ids that exist in every vocabulary and are hardly ever special, for servers whose tokenizer is out of reach.
_SAFE_TOKEN_IDS = range(32, 96)


class WorkloadError(Exception):
    """The workload can't be made; the message says which option to change."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """`content` is a text, or token ids, which only `/v1/completions` takes."""

    content: str | list[int]
    output_tokens: int  # how many are asked for


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths in tokens: every prompt is the `prefix` that all share and `input` tokens of its own."""

    prefix: int
    input: int
    output: int


def random_texts(vocabulary: Vocabulary, shape: Shape, count: int, rng: random.Random, *, chat: bool) -> list[Prompt]:
    """`count` texts. What the tokenizer adds to each is part of its length; what a chat template adds is not."""
    added = 0 if chat else vocabulary.special_tokens
    prefix_length = max(shape.prefix - added, 0)
    own_length = max(shape.prefix + shape.input - added - prefix_length, 1)
    prefix = vocabulary.text(prefix_length, rng)
    return [Prompt(prefix + vocabulary.text(own_length, rng), shape.output) for _ in range(count)]


def random_token_ids(shape: Shape, count: int, rng: random.Random) -> list[Prompt]:
    """`count` lists of token ids that are valid in any vocabulary."""
    prefix = rng.choices(_SAFE_TOKEN_IDS, k=shape.prefix)
    return [Prompt(prefix + rng.choices(_SAFE_TOKEN_IDS, k=shape.input), shape.output) for _ in range(count)]


def prompts_of_file(path: Path, output_tokens: int, count: int | None) -> list[Prompt]:
    """A prompt a line; in a .jsonl file the field `prompt` of each line, and `output_tokens` where a line has it.

    The first `count` of them, or all; from the beginning again when there are fewer. Raises `WorkloadError`.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"--dataset-path: cannot read {path}: {error}") from error
    if not lines:
        raise WorkloadError(f"--dataset-path: {path} has no prompt in it")
    if path.suffix == ".jsonl":
        prompts = [_from_json(line, f"{path}:{number}", output_tokens) for number, line in enumerate(lines, 1)]
    else:
        prompts = [Prompt(line, output_tokens) for line in lines]
    return prompts if count is None else (prompts * math.ceil(count / len(prompts)))[:count]


def _from_json(line: str, where: str, output_tokens: int) -> Prompt:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise WorkloadError(f"--dataset-path: {where} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("prompt"), str):
        raise WorkloadError(f'--dataset-path: {where} is not an object with a text "prompt"')
    asked = fields.get("output_tokens", output_tokens)
    if not isinstance(asked, int) or asked < 1:
        raise WorkloadError(f'--dataset-path: {where}: "output_tokens" must be a whole number of at least 1')
    return Prompt(fields["prompt"], asked)


def departures(count: int, rate: float, burstiness: float, rng: random.Random) -> list[float]:
    """Seconds from the start at which each request leaves, `rate` a second on average; all at 0 for an infinite rate.

    The gaps follow a gamma distribution of shape `burstiness`: 1 makes it a Poisson process, less comes in bursts,
    more is more even.
    """
    if math.isinf(rate):
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times
