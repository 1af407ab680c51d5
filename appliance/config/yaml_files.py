"""Settings from a YAML file and the drop-ins beside it."""

from __future__ import annotations

from pathlib import Path

import yaml

from appliance.config.catalog import TITLES, canonical
from appliance.config.errors import ConfigError
from appliance.config.given import Given

DROP_IN_FOLDER = "conf.d"


def from_files(path: Path) -> list[Given]:
    """The settings of `path`, then those of conf.d/*.yaml beside it in the order of their names: later ones win."""
    drop_ins = sorted((path.parent / DROP_IN_FOLDER).glob("*.yaml"))
    return [given for file in (path, *drop_ins) for given in _from_file(file)]


def _from_file(path: Path) -> list[Given]:
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ConfigError(f"The configuration file {path} is not UTF-8 text.") from error
    try:
        return _from_document(loader, path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"The configuration file is not valid YAML: {error.problem} ({path}:{line}).") from error
    finally:
        loader.dispose()


def _from_document(loader: yaml.SafeLoader, path: Path) -> list[Given]:
    # The nodes are walked by hand, not loaded as a dict, to know each key's line and to notice one that is given twice.
    document = loader.get_single_node()
    if document is None:
        return []
    if not isinstance(document, yaml.MappingNode):
        raise ConfigError(f"The configuration file must hold lines of the form `name: value` ({path}:1).")
    lines: dict[str, int] = {}
    found: list[Given] = []
    for key, node in document.value:
        line = key.start_mark.line + 1
        name = canonical(str(key.value))
        if name in lines:
            raise ConfigError(f"{key.value} is given twice, in line {lines[name]} and in line {line} of {path}.")
        if name in TITLES and isinstance(node, yaml.MappingNode):
            raise ConfigError(f"Settings are not grouped in a file: move those under {key.value} up ({path}:{line}).")
        lines[name] = line
        value = loader.construct_object(node, deep=True)
        found.append(Given(name, value, f"{path}:{line}"))
    return found
