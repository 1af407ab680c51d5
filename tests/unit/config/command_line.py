"""Resolving a command line in a test, as a command does it."""

from __future__ import annotations

from appliance.cli.parser import Parser
from appliance.config import Resolved, add_settings_arguments, resolve


def resolved(*words: str, **environ: str) -> Resolved:
    parser = Parser(prog="pagebox serve")
    add_settings_arguments(parser)
    return resolve(parser.parse_args(words), environ)
