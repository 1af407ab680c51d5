"""Which tokens end a sequence, as the files of a model say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def eos_token_ids(location: Path, config: Any) -> frozenset[int]:
    """End-of-sequence ids from the model's configuration, its generation_config.json and its tokenizer.

    The three often differ: a chat model's tokenizer names the end of a turn, its config.json the end of a document.
    `location` is a model folder or a GGUF file in one, `config` a transformers configuration.
    """
    folder = location if location.is_dir() else location.parent
    ids = set()
    for part in (config, getattr(config, "text_config", None)):  # a model that also sees has a part for text
        ids |= _as_set(getattr(part, "eos_token_id", None))
    ids |= _as_set(_read(folder / "generation_config.json").get("eos_token_id"))
    token = _read(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None:
        added = _read(folder / "tokenizer.json").get("added_tokens", [])
        ids |= {entry["id"] for entry in added if entry["content"] == text}
    return frozenset(ids)


def _as_set(value: int | list[int] | None) -> set[int]:
    if value is None:
        return set()
    return set(value) if isinstance(value, list) else {value}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}
