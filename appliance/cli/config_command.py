"""`pagebox config show | explain | check | reference`: settings for people."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from appliance.config import Resolved, add_settings_arguments, resolve, resolve_file
from appliance.config.catalog import TITLES, catalog, settings_of_group, value_of
from appliance.config.combinations import DEFAULT_ORIGIN
from appliance.config.reference import explained, find, reference
from appliance.config.values import masked, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    show = verbs.add_parser("show", help="the effective settings and where each comes from")
    show.add_argument("--json", action="store_true", help="print a JSON object")
    add_settings_arguments(show)
    show.set_defaults(verb=_show)
    explain = verbs.add_parser("explain", help="all facts of one setting")
    explain.add_argument("name", metavar="NAME", help="a setting, for example max-num-seqs")
    explain.set_defaults(verb=_explain)
    check = verbs.add_parser("check", help="check a configuration file and the conf.d/*.yaml beside it")
    check.add_argument("file", metavar="FILE", type=Path)
    check.set_defaults(verb=_check)
    verbs.add_parser("reference", help="print docs/configuration.md").set_defaults(verb=_reference)


def run(options: argparse.Namespace) -> int:
    cast(Callable[[argparse.Namespace], None], options.verb)(options)
    return 0


def _show(options: argparse.Namespace) -> None:
    resolved = resolve(options)
    _print_notices(resolved)
    print(_as_json(resolved) if options.json else _as_table(resolved))


def _explain(options: argparse.Namespace) -> None:
    print(explained(find(options.name)))


def _check(options: argparse.Namespace) -> None:
    resolved = resolve_file(options.file)
    _print_notices(resolved)
    given = sum(origin != DEFAULT_ORIGIN for origin in resolved.provenance.values())
    print(f"{options.file}: no mistakes; settings given: {given}.")


def _reference(options: argparse.Namespace) -> None:
    print(reference(), end="")


def _print_notices(resolved: Resolved) -> None:
    for notice in resolved.notices:
        print(notice, file=sys.stderr)


def _as_json(resolved: Resolved) -> str:
    values = {
        setting.name: {
            "value": masked(setting, value_of(resolved.settings, setting)),
            "from": resolved.provenance[setting.name],
        }
        for setting in catalog().values()
    }
    return json.dumps(values, indent=2)


def _as_table(resolved: Resolved) -> str:
    rows = [
        (setting.title, shown(setting, value_of(resolved.settings, setting)), resolved.provenance[setting.name])
        for setting in catalog().values()
    ]
    widths = [max(len(row[column]) for row in rows) + 2 for column in (0, 1)]
    by_name = {row[0]: f"  {row[0]:<{widths[0]}}{row[1]:<{widths[1]}}{row[2]}" for row in rows}
    lines: list[str] = []
    for group, title in TITLES.items():
        lines += [title, *(by_name[setting.title] for setting in settings_of_group(group)), ""]
    return "\n".join(lines[:-1])
