"""Why an engine did not start, as one sentence with the fix."""

from __future__ import annotations


class StartupError(Exception):
    """The start failed; another attempt may succeed (memory that was short, a folder that was not mounted)."""

    exit_code = 1


class SettingsRefused(StartupError):
    """These settings can never work with this model and machine."""

    exit_code = 2
