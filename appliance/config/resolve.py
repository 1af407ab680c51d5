"""One set of settings out of flags, environment, files and defaults, in that order of precedence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from appliance.config.catalog import canonical, catalog, settings_of_group, value_of
from appliance.config.combinations import DEFAULT_ORIGIN, check_combinations
from appliance.config.environment import CONFIG_VARIABLE, from_environment
from appliance.config.errors import ConfigError, suggestion
from appliance.config.flags import from_flags
from appliance.config.given import Given
from appliance.config.old_names import OLD_NAMES, translated
from appliance.config.settings import Settings
from appliance.config.values import converted, shown
from appliance.config.yaml_files import from_files


@dataclass(frozen=True)
class Resolved:
    """The effective settings, where each comes from (by name, "default" included), and lines to tell the person."""

    settings: Settings
    provenance: Mapping[str, str]
    notices: tuple[str, ...]


def resolve(options: argparse.Namespace, environ: Mapping[str, str] | None = None) -> Resolved:
    """Settings from a command line parsed after `add_settings_arguments`, the environment (os.environ) and `--config`.

    Raises ConfigError, one sentence, for an unknown name, a wrong value, a setting that is not built yet and a
    combination that cannot work.
    """
    environ = os.environ if environ is None else environ
    file = options.config or environ.get(CONFIG_VARIABLE)
    givens = from_files(Path(file)) if file else []
    return _resolved([*givens, *from_environment(environ), *from_flags(options)])


def resolve_file(path: Path) -> Resolved:
    """Settings from a file and its drop-ins alone."""
    return _resolved(from_files(path))


def resolve_values(values: Mapping[str, Any]) -> Resolved:
    """Settings from keyword arguments, as the offline `LLM` class takes them; nothing else is read."""
    return _resolved([Given(name, value, f"argument {name}") for name, value in values.items()])


def require_model(resolved: Resolved) -> None:
    """Raise ConfigError when no model was named, for the commands that load one."""
    if not resolved.settings.model.model:
        raise ConfigError(
            "Name a model: a local folder or a Hugging Face id, before all flags (a flag that takes several values, "
            "such as --api-key, takes every word after it)."
        )


def _resolved(givens: Iterable[Given]) -> Resolved:
    values: dict[str, Any] = {}
    provenance = dict.fromkeys(catalog(), DEFAULT_ORIGIN)
    notices: list[str] = []
    for given in givens:
        current: Given | None = given
        if given.name in OLD_NAMES:
            current, notice = translated(given)
            notices.append(notice)
        if current is not None:
            setting = catalog().get(current.name)
            if setting is None:
                raise _unknown(current)
            values[setting.name] = converted(setting, current.value, current.origin)
            provenance[setting.name] = current.origin
    settings = _composed(values)
    _check_built(settings, provenance)
    check_combinations(settings, provenance)
    return Resolved(settings, provenance, tuple(notices))


def _composed(values: Mapping[str, Any]) -> Settings:
    groups = {
        group: group_type(**{one.name: values[one.name] for one in settings_of_group(group) if one.name in values})
        for group, group_type in get_type_hints(Settings).items()
    }
    return Settings(**groups)


def _check_built(settings: Settings, provenance: Mapping[str, str]) -> None:
    for setting in catalog().values():
        value = value_of(settings, setting)
        if setting.declaration.not_built and value != setting.default:
            raise ConfigError(
                f"{setting.title} = {shown(setting, value)} ({provenance[setting.name]}) is refused. "
                f"{setting.declaration.not_built}"
            )


def _unknown(given: Given) -> ConfigError:
    near = suggestion(canonical(given.name).replace("_", "-"), (setting.title for setting in catalog().values()))
    return ConfigError(f"Unknown setting {given.name.replace('_', '-')} ({given.origin}){near}")
