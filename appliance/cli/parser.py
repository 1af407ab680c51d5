"""The argument parser of every command: one sentence about a mistake, exit code 2, nothing abbreviated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from appliance.config.errors import suggestion
from appliance.config.values import switch_from_text

_MISTAKE = 2


class Parser(argparse.ArgumentParser):
    """As argparse's, but `--max_num_seqs` is `--max-num-seqs`, switches take `=false`, and an unknown flag offers the
    nearest one. A switch is a flag without a value that has a partner beginning `--no-`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        words = self._normalized(sys.argv[1:] if args is None else args)
        parsed, unknown = super().parse_known_args(words, namespace)
        for word in unknown:
            if word.startswith("-"):
                flag = word.partition("=")[0]
                self.error(f"unknown flag {flag}{suggestion(flag, self._option_string_actions)}")
        if unknown:
            self.error(f"unexpected argument {unknown[0]!r}.")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        sentence = message if message.endswith((".", "?")) else f"{message}."
        self.exit(_MISTAKE, f"{self.prog}: {sentence}\n")

    def _normalized(self, words: Sequence[str]) -> list[str]:
        end = words.index("--") if "--" in words else len(words)
        return [self._normalized_word(word) for word in words[:end]] + list(words[end:])

    def _normalized_word(self, word: str) -> str:
        if not word.startswith("--"):
            return word
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        off = f"--no-{flag.removeprefix('--')}"
        if not equals or off not in self._option_string_actions or flag not in self._option_string_actions:
            return flag + equals + value
        switched_on = switch_from_text(value)
        if isinstance(switched_on, str):
            self.error(f"{flag} must be true or false, not {value!r}.")
        return flag if switched_on else off
