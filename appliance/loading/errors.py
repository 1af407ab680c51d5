"""The one error of loading: a sentence for the person who starts the server."""

from __future__ import annotations


class ModelLoadError(Exception):
    """A model could not be found, read or understood; the message says which file or tensor, and what to change."""
