"""The only truth about settings: declared once, from which flags, YAML, environment and documentation come."""

from __future__ import annotations

from appliance.config.errors import ConfigError
from appliance.config.flags import add_settings_arguments
from appliance.config.groups.features import FeatureSettings
from appliance.config.groups.memory import MemorySettings
from appliance.config.groups.model import ModelSettings
from appliance.config.groups.parallel import ParallelSettings
from appliance.config.groups.performance import PerformanceSettings
from appliance.config.groups.scheduling import SchedulingSettings
from appliance.config.groups.server import ServerSettings
from appliance.config.groups.watcher import WatcherSettings
from appliance.config.resolve import Resolved, require_model, resolve, resolve_file, resolve_values
from appliance.config.settings import Settings, settings_from_json, settings_to_json

__all__ = [
    "ConfigError",
    "FeatureSettings",
    "MemorySettings",
    "ModelSettings",
    "ParallelSettings",
    "PerformanceSettings",
    "Resolved",
    "SchedulingSettings",
    "ServerSettings",
    "Settings",
    "WatcherSettings",
    "add_settings_arguments",
    "require_model",
    "resolve",
    "resolve_file",
    "resolve_values",
    "settings_from_json",
    "settings_to_json",
]
