"""Settings from PAGEBOX_… environment variables."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.config.catalog import VARIABLE_PREFIX, catalog
from appliance.config.errors import ConfigError, suggestion
from appliance.config.given import Given
from appliance.config.old_names import OLD_NAMES
from appliance.config.values import from_comma_list, from_text, switch_from_text

CONFIG_VARIABLE = "PAGEBOX_CONFIG"  # names the configuration file, as --config does


def from_environment(environ: Mapping[str, str]) -> list[Given]:
    """Every setting in `environ`. An empty variable counts as unset; an unknown PAGEBOX_ name is a ConfigError."""
    found: list[Given] = []
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith(VARIABLE_PREFIX) or variable == CONFIG_VARIABLE or not text.strip():
            continue
        name = variable.removeprefix(VARIABLE_PREFIX).lower()
        origin = f"environment variable {variable}"
        setting = catalog().get(name)
        if setting is None:
            if name not in OLD_NAMES:
                raise _unknown(variable)
            found.append(Given(name, switch_from_text(text), origin))
        elif setting.shape.many:
            found.append(Given(name, from_comma_list(setting, text), origin))
        else:
            found.append(Given(name, from_text(setting, text), origin))
    return found


def _unknown(variable: str) -> ConfigError:
    valid = [CONFIG_VARIABLE, *(setting.variable for setting in catalog().values())]
    return ConfigError(f"Unknown environment variable {variable}{suggestion(variable, valid)}")
