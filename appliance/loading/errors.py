"""The errors of loading: a sentence for the person who starts the server."""

from __future__ import annotations


class ModelLoadError(Exception):
    """A model could not be found, read or understood; the message says which file or tensor, and what to change."""


class ModelFolderMissing(ModelLoadError):
    """The model is named by a local path, and nothing is there: trying again with these settings is pointless."""
