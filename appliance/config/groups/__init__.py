"""The settings, one group a file."""

from __future__ import annotations
