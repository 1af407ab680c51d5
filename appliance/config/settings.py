"""All settings together, and their form as a file between processes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from appliance.config.groups.features import FeatureSettings
from appliance.config.groups.memory import MemorySettings
from appliance.config.groups.model import ModelSettings
from appliance.config.groups.parallel import ParallelSettings
from appliance.config.groups.performance import PerformanceSettings
from appliance.config.groups.scheduling import SchedulingSettings
from appliance.config.groups.server import ServerSettings
from appliance.config.groups.watcher import WatcherSettings


@dataclass(frozen=True)
class Settings:
    """Every setting. `Settings()` has all defaults; `dataclasses.replace` makes variants."""

    model: ModelSettings = field(default_factory=ModelSettings)
    parallel: ParallelSettings = field(default_factory=ParallelSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)
    scheduling: SchedulingSettings = field(default_factory=SchedulingSettings)
    performance: PerformanceSettings = field(default_factory=PerformanceSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    watcher: WatcherSettings = field(default_factory=WatcherSettings)


def settings_to_json(settings: Settings) -> bytes:
    """The form in which the server hands its settings to the engine process. It contains the API keys in clear."""
    return msgspec.json.encode(settings)


def settings_from_json(data: bytes) -> Settings:
    """The reverse of `settings_to_json`; raises msgspec.ValidationError when a field has the wrong type."""
    return msgspec.json.decode(data, type=Settings)
