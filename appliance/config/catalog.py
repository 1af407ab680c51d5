"""Every declared setting as a value that can be listed, found by name and described."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from appliance.config.declaration import Declaration, declaration_of
from appliance.config.settings import Settings

VARIABLE_PREFIX = "PAGEBOX_"
TITLES = MappingProxyType(
    {
        "model": "Model",
        "parallel": "Parallelism",
        "memory": "Memory",
        "scheduling": "Scheduling",
        "performance": "Performance",
        "server": "Server",
        "features": "Features",
        "watcher": "Spot watcher",
    }
)


@dataclass(frozen=True)
class Shape:
    """A setting's type, taken apart. `base` is None when only `words` are allowed; dict stands for a JSON object."""

    base: type | None
    words: tuple[str, ...]
    many: bool
    nullable: bool


@dataclass(frozen=True)
class Setting:
    """One setting: where it stands in `Settings`, and all that is declared of it."""

    name: str  # as in YAML and Python: max_num_seqs
    group: str
    default: Any
    shape: Shape
    declaration: Declaration

    @property
    def title(self) -> str:
        """As people read it: max-num-seqs."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        return f"--{self.title}"

    @property
    def variable(self) -> str:
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def is_switch(self) -> bool:
        return self.shape.base is bool


@cache
def catalog() -> Mapping[str, Setting]:
    """All settings by name, in the order of their declaration."""
    found: dict[str, Setting] = {}
    for group, group_type in get_type_hints(Settings).items():
        hints = get_type_hints(group_type)
        for declared in dataclasses.fields(group_type):
            assert declared.name not in found, f"{declared.name} is declared in two groups"
            found[declared.name] = Setting(
                name=declared.name,
                group=group,
                default=declared.default,
                shape=_shape(hints[declared.name]),
                declaration=declaration_of(declared),
            )
    return MappingProxyType(found)


def settings_of_group(group: str) -> list[Setting]:
    return [setting for setting in catalog().values() if setting.group == group]


def canonical(name: str) -> str:
    """`Max-Num-Seqs` and `max_num_seqs` are one name."""
    return name.strip().lower().replace("-", "_")


def value_of(settings: Settings, setting: Setting) -> Any:
    return getattr(getattr(settings, setting.group), setting.name)


def _shape(hint: Any) -> Shape:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    base: type | None = None
    words: tuple[str, ...] = ()
    many = False
    for part in parts:
        origin = get_origin(part)
        if origin is Literal:
            words = get_args(part)
        elif origin is tuple:
            many, member = True, get_args(part)[0]
            base, words = (None, get_args(member)) if get_origin(member) is Literal else (member, ())
        elif origin is not None and issubclass(origin, Mapping):
            base = dict
        elif part is not NoneType:
            base = part
    return Shape(base=base, words=words, many=many, nullable=NoneType in parts)
