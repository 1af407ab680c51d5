"""Finds and loads a model's tokenizer files without importing torch.

transformers' `AutoTokenizer` imports torch, and half the library with it. `PreTrainedTokenizerFast` reads the same
`tokenizer.json` and `tokenizer_config.json` and imports neither (from transformers 5.18 on).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CONVERT = """
import sys
from transformers import AutoTokenizer
source, target, revision, cache_dir = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main", cache_dir=cache_dir or None)
if not tokenizer.is_fast:
    sys.exit("transformers has no fast version of this tokenizer")
tokenizer.save_pretrained(target)
"""


class TokenizerLoadError(ValueError):
    """The tokenizer can't be loaded; the message says what is missing and which setting changes it."""


def load_pretrained(
    path_or_id: str, *, slow: bool, revision: str | None, download_dir: str | None, trust_remote_code: bool
) -> Any:
    """A transformers tokenizer from a folder or Hugging Face id. Raises `TokenizerLoadError`."""
    if Path(path_or_id).is_file():
        path_or_id = str(Path(path_or_id).parent)  # a weight file, such as GGUF: its tokenizer lies beside it
    where: dict[str, Any] = {"revision": revision or "main", "cache_dir": download_dir}
    try:
        custom = "auto_map" in read_model_json(
            path_or_id, "tokenizer_config.json", revision=revision, download_dir=download_dir
        )
        if slow or (custom and trust_remote_code):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(
                path_or_id, use_fast=not slow, trust_remote_code=trust_remote_code, **where
            )
        if _cached_file(path_or_id, "tokenizer.json", revision, download_dir) is None:
            return _load_converted(path_or_id, revision, download_dir)
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(path_or_id, **where)
    except TokenizerLoadError:
        raise
    except Exception as error:  # transformers raises whatever the broken file made it raise
        reason = " ".join(str(error).split())[:400]
        raise TokenizerLoadError(
            f"cannot load a tokenizer from {path_or_id!r}: {reason}. Check the model folder, "
            "or name another one with --tokenizer"
        ) from error


def read_model_json(path_or_id: str, name: str, *, revision: str | None, download_dir: str | None) -> dict[str, Any]:
    """A JSON file of the model, `{}` when it has none."""
    path = _cached_file(path_or_id, name, revision, download_dir)
    if path is None:
        return {}
    value = json.loads(path.read_text(encoding="utf-8"))
    return value if isinstance(value, dict) else {}


def _cached_file(path_or_id: str, name: str, revision: str | None, download_dir: str | None) -> Path | None:
    """Where a file of the model lies, after fetching it if need be; None when the model has no such file."""
    local = Path(path_or_id)
    if local.is_file():
        local = local.parent
    if local.is_dir():
        return local / name if (local / name).is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(
        path_or_id,
        name,
        revision=revision or "main",
        cache_dir=download_dir,
        _raise_exceptions_for_missing_entries=False,
    )
    return None if found is None else Path(found)


def _load_converted(path_or_id: str, revision: str | None, download_dir: str | None) -> Any:
    """A tokenizer in an older format (sentencepiece, vocab and merges), converted by a child, as that imports torch."""
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory(prefix="pagebox-tokenizer-") as folder:
        command = [sys.executable, "-c", _CONVERT, path_or_id, folder, revision or "", download_dir or ""]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode != 0:
            lines = child.stderr.strip().splitlines() or ["no reason given"]
            raise TokenizerLoadError(
                f"{path_or_id!r} has no tokenizer.json, and converting its tokenizer failed: {lines[-1][:400]}. "
                "Check the model folder, or name another one with --tokenizer"
            )
        return PreTrainedTokenizerFast.from_pretrained(folder)
