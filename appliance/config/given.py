"""What the sources of settings have in common: a name, a value, and where it was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Given:
    """One value that somebody wrote. `name` has underscores and may be unknown; `value` is not checked yet."""

    name: str
    value: Any
    origin: str  # to stand in brackets: flag --max-num-seqs, environment variable PAGEBOX_…, pagebox.yaml:12
