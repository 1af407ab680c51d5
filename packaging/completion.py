"""Prints the completion for bash: commands, and the flags of each, as their parsers have them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator

from appliance.cli.main import COMMANDS
from appliance.cli.parser import Parser

SCRIPT = """\
# Completion of pagebox(1) for bash. Written by packaging/completion.py.
_pagebox() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} words
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{cases}
        *) words="{commands}" ;;
    esac
    if ((COMP_CWORD == 1)); then
        words="{commands}"
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _pagebox pagebox"""


def main() -> None:
    firsts = sorted({command.name.split()[0] for command in COMMANDS})
    cases = []
    # those of two words first: `bench serve` before what begins with `bench`
    for command in sorted(COMMANDS, key=lambda command: -len(command.name.split())):
        parser = Parser(prog=command.name)
        importlib.import_module(command.module).add_arguments(parser)
        pattern = f'"{command.name}"' if " " in command.name else f'"{command.name} "*'
        cases.append(f'        {pattern}) words="{" ".join(sorted(set(words_of(parser))))}" ;;')
    for first in firsts:
        seconds = sorted(command.name.split()[1] for command in COMMANDS if command.name.startswith(f"{first} "))
        if seconds:
            cases.append(f'        "{first} "*) words="{" ".join(seconds)}" ;;')
    print(SCRIPT.format(cases="\n".join(cases), commands=" ".join(firsts)))


def words_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices
            for child in action.choices.values():
                yield from words_of(child)


if __name__ == "__main__":
    main()
