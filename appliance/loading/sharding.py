"""The files of a checkpoint that may be split, as its index says."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.loading.errors import ModelLoadError


def checkpoint_paths(folder: Path, single: str, index: str) -> list[Path]:
    """`folder/single`, or the files named in `folder/index`; empty if neither is there."""
    if (folder / single).is_file():
        return [folder / single]
    index_path = folder / index
    if not index_path.is_file():
        return []
    try:
        weight_map = json.loads(index_path.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(
            f"{index_path}: not a checkpoint index (a JSON object with weight_map): {error}"
        ) from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelLoadError(
            f"{folder}: {len(missing)} of the {len(names)} weight files named in {index} are missing, the first is "
            f"{missing[0]}; fetch the model again"
        )
    return [folder / name for name in names]
