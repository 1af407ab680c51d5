"""What goes wrong with certificates, for the person who runs the command."""

from __future__ import annotations


class TlsError(Exception):
    """A sentence: what is wrong with which file, and what to do."""
