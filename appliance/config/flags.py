"""Settings as command-line flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from appliance.config.catalog import TITLES, Setting, catalog, settings_of_group
from appliance.config.errors import ConfigError
from appliance.config.given import Given
from appliance.config.old_names import MEANINGLESS, WORKER_USE_RAY
from appliance.config.values import from_text, from_texts, shown

_COLLECTED = "settings_given"
_MODEL_ORIGIN = "argument MODEL"


def add_settings_arguments(parser: argparse.ArgumentParser, *, model_argument: bool = True) -> None:
    """Add a flag for every setting, `--config FILE`, and MODEL as the first argument unless `model_argument` is off.

    What is written there is only collected, as the parser cannot know what files and environment say; `resolve` of the
    parsed namespace converts, checks and merges it.
    """
    parser.usage = f"%(prog)s{' [MODEL]' if model_argument else ''} [FLAGS]"
    if model_argument:
        parser.add_argument(
            "model",
            nargs="?",
            default=argparse.SUPPRESS,
            action=_Collect,
            metavar="MODEL",
            help="a local folder in Hugging Face's layout, a GGUF file, or a Hugging Face id",
        )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; conf.d/*.yaml beside it add to it.")
    for group, title in TITLES.items():
        section = parser.add_argument_group(title)
        for setting in settings_of_group(group):
            _add_flag(section, setting)
    for name in sorted(MEANINGLESS):
        parser.add_argument(_flag(name), dest=name, default=argparse.SUPPRESS, action=_Collect, help=argparse.SUPPRESS)
    _add_switch(parser, WORKER_USE_RAY, argparse.SUPPRESS)


def from_flags(options: argparse.Namespace) -> list[Given]:
    """The settings that the command line gave, in its order; a setting with several values comes once, with all."""
    found: dict[str, Given] = {}
    for name, words, origin in getattr(options, _COLLECTED, []):
        setting = catalog().get(name)
        value: Any = words
        if setting is not None and setting.shape.many:
            earlier = found[name].value if name in found else []
            value = [*earlier, *from_texts(setting, words)]
        elif setting is not None and not isinstance(words, bool):
            value = from_text(setting, words)
        if name == "model" and name in found and found[name].value != value:
            raise ConfigError(
                f"Two models are named: {found[name].value} ({found[name].origin}) and {value} ({origin})."
            )
        found[name] = Given(name, value, origin)
    return list(found.values())


def _add_flag(section: argparse._ArgumentGroup, setting: Setting) -> None:
    if setting.is_switch:
        _add_switch(section, setting.name, _help(setting.name))
        return
    section.add_argument(
        setting.flag,
        dest=setting.name,
        default=argparse.SUPPRESS,
        action=_Collect,
        nargs="+" if setting.shape.many else None,
        metavar=_metavar(setting),
        help=_help(setting.name),
    )


def _add_switch(section: argparse._ActionsContainer, name: str, help_text: str) -> None:
    for flag, value in ((_flag(name), True), (_flag(f"no_{name}"), False)):
        section.add_argument(
            flag,
            dest=name,
            default=argparse.SUPPRESS,
            action=_Collect,
            nargs=0,
            const=value,
            help=help_text if value else argparse.SUPPRESS,
        )


class _Collect(argparse.Action):
    """Note a setting, the words that follow it and the flag as it was written, in the namespace."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        collected = [*getattr(namespace, _COLLECTED, [])]
        origin = f"flag {option_string}" if option_string else _MODEL_ORIGIN
        collected.append((self.dest, self.const if self.nargs == 0 else values, origin))
        setattr(namespace, _COLLECTED, collected)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help(name: str) -> str:
    setting = catalog()[name]
    default = setting.declaration.when_unset.rstrip(".") or shown(setting, setting.default)
    text = f"{setting.declaration.purpose} Default: {default}."
    if setting.declaration.not_built:
        text += f" NOT BUILT YET: {setting.declaration.not_built}"
    return text.replace("%", "%%")


def _metavar(setting: Setting) -> str:
    shape = setting.shape
    if shape.base is None:
        return "{" + ",".join(shape.words) + "}"
    if setting.declaration.unit == "bytes":
        return "BYTES"
    return {int: "N", float: "NUMBER", str: "TEXT", dict: "JSON"}[shape.base]
