"""What the benchmark commands have in common on their command lines."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any


def shape_arguments(parser: argparse.ArgumentParser, *, prefix_default: str) -> None:
    """Lengths of prompts and outputs, in tokens, under vLLM's names and shorter ones."""
    for name, default, text in (("input", 512, "of its own in each prompt"), ("output", 128, "to generate for each")):
        parser.add_argument(
            f"--{name}-len",
            f"--random-{name}-len",
            dest=f"{name}_len",
            type=positive,
            default=default,
            metavar="N",
            help=f"tokens {text} (default: %(default)s)",
        )
    parser.add_argument(
        "--prefix-len",
        "--random-prefix-len",
        dest="prefix_len",
        type=non_negative,
        metavar="N",
        help=f"tokens with which all prompts begin (default: {prefix_default})",
    )


def positive(text: str) -> int:
    return _whole(text, 1)


def non_negative(text: str) -> int:
    return _whole(text, 0)


def rate(text: str) -> float:
    """A number above 0, or infinity."""
    number = _number(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, or inf")
    return number


def percentages(text: str) -> list[float]:
    numbers = [_number(part) for part in text.split(",")]
    if not all(0 <= number <= 100 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of percentages such as 50,90,99.9")
    return numbers


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return found


def _whole(text: str, least: int) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
