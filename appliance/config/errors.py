"""The one exception of this package, and the nearest valid name that its sentences offer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Settings that cannot work. The message is one sentence for a person; commands print it and exit with 2."""


def suggestion(word: str, valid: Iterable[str]) -> str:
    """The words to append when `word` is unknown: "; did you mean X?", or a full stop when nothing is near."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "."
