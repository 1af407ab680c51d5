"""The only truth about settings: declared once, from which flags, YAML, environment and documentation come."""

from __future__ import annotations

from appliance.config.groups.features import FeatureSettings
from appliance.config.groups.memory import MemorySettings
from appliance.config.groups.model import ModelSettings
from appliance.config.groups.parallel import ParallelSettings
from appliance.config.groups.performance import PerformanceSettings
from appliance.config.groups.scheduling import SchedulingSettings
from appliance.config.groups.server import ServerSettings
from appliance.config.settings import Settings, settings_from_json, settings_to_json

__all__ = [
    "FeatureSettings",
    "MemorySettings",
    "ModelSettings",
    "ParallelSettings",
    "PerformanceSettings",
    "SchedulingSettings",
    "ServerSettings",
    "Settings",
    "settings_from_json",
    "settings_to_json",
]
