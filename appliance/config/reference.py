"""The settings in words: all facts of one, and the reference of all (docs/configuration.md)."""

from __future__ import annotations

import textwrap

from appliance.config.catalog import TITLES, Setting, canonical, catalog, settings_of_group
from appliance.config.errors import ConfigError, suggestion
from appliance.config.old_names import MEANINGLESS, OLD_NAMES, WORKER_USE_RAY
from appliance.config.values import expectation, shown

_INTRODUCTION = """\
# Configuration

This page is written by `pagebox config reference` from the declarations in `appliance/config/groups/`: change those.

Every setting can be given in three ways; `max-num-seqs`, for example, as

* a flag, `--max-num-seqs 64` (`--max_num_seqs` is the same),
* an environment variable, `PAGEBOX_MAX_NUM_SEQS=64` (an empty one counts as unset),
* a line in a YAML file named by `--config FILE` or `PAGEBOX_CONFIG`: `max_num_seqs: 64`.

Flags beat the environment, the environment beats files, files beat defaults. Files named `conf.d/*.yaml` beside the
configuration file are read after it, in the order of their names; later ones win.

How values are written:

* Switches: `--enable-metrics`, `--no-enable-metrics`, `--enable-metrics=false`; `true` or `false` elsewhere.
* Several values: `--api-key A B` or `--api-key A --api-key B`; `A,B` in the environment; a list in YAML. A JSON list
  does on the command line and in the environment too. A flag with several values takes every word that follows, so
  write the model before it.
* Sizes in bytes: a plain number, or with kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024).
* Numbers of tokens: a plain number, or 32k (32,000) and 32K (32,768), m and M likewise.
* JSON objects: quoted JSON on the command line and in the environment, a mapping in YAML.

An unknown name, a wrong value or an impossible combination ends any command with one sentence and exit code 2, before a
weight is read. So does a setting marked *not built yet* that is given anything but its default: nothing is ignored.

`pagebox config explain NAME` shows one setting, `pagebox config show` the effective values and where each comes from,
`pagebox config check FILE` checks a file.
"""


def find(name: str) -> Setting:
    """The setting of that name, without dashes before it. Raises ConfigError with the nearest name."""
    wanted = canonical(name).removeprefix("pagebox_")
    if wanted in MEANINGLESS:
        raise ConfigError(f"{name} is accepted and changes nothing: continuous batching makes it meaningless here.")
    if wanted == WORKER_USE_RAY:
        raise ConfigError(f"{name} is the old name of distributed-executor-backend: ray.")
    if wanted not in catalog():
        raise ConfigError(f"Unknown setting {name}{suggestion(wanted.replace('_', '-'), titles())}")
    return catalog()[wanted]


def titles() -> list[str]:
    return [setting.title for setting in catalog().values()]


def facts(setting: Setting) -> list[tuple[str, str]]:
    """What is declared of a setting, as pairs of label and text, in reading order."""
    declared = setting.declaration
    default = shown(setting, setting.default)
    if declared.when_unset:
        default = f"unset. {declared.when_unset}"
    several = "one or more, each " if setting.shape.many else ""
    pairs = [
        ("Purpose", declared.purpose),
        ("Value", several + expectation(setting)),
        ("Default", default),
        ("Memory", declared.memory),
        ("Throughput", declared.throughput),
        ("Typical", declared.typical),
        ("Formula", declared.formula),
        ("Not built yet", declared.not_built),
    ]
    return [(label, text) for label, text in pairs if text]


def explained(setting: Setting) -> str:
    """All facts of one setting, for a terminal."""
    pairs = [
        *facts(setting),
        ("Group", TITLES[setting.group]),
        ("Flag", setting.flag + (f", --no-{setting.title}" if setting.is_switch else "")),
        ("YAML", setting.name),
        ("Environment", setting.variable),
    ]
    return "\n".join([setting.title, *(_labelled(label, text) for label, text in pairs)])


def reference() -> str:
    """The text of docs/configuration.md."""
    parts = [_INTRODUCTION]
    for group, title in TITLES.items():
        parts.append(f"## {title}\n")
        parts.extend(_section(setting) for setting in settings_of_group(group))
    old = ", ".join(f"`{name.replace('_', '-')}`" for name in sorted(OLD_NAMES - {WORKER_USE_RAY}))
    parts.append(
        "## Old names\n\n"
        f"{old} are accepted with a notice and change nothing: continuous batching makes them meaningless here.\n"
        "`worker-use-ray` is accepted as the old name of `distributed-executor-backend: ray`.\n"
    )
    return "\n".join(parts)


def _labelled(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        width=100,
        initial_indent=f"  {label + ':':<15}",
        subsequent_indent=" " * 17,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _section(setting: Setting) -> str:
    lines = [f"* **{label}**: {text}" for label, text in facts(setting)[1:]]
    return "\n".join([f"### {setting.title}\n", setting.declaration.purpose + "\n", *lines, ""])
