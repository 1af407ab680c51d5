"""`pagebox version`: the version of this installation."""

from __future__ import annotations

import argparse
import json

from appliance.version import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(options: argparse.Namespace) -> int:
    print(json.dumps({"version": __version__}) if options.json else f"pagebox {__version__}")
    return 0
