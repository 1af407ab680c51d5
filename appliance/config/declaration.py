"""How one setting is declared: a dataclass field whose metadata says everything a person wants to know about it."""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")

_METADATA_KEY = "declaration"


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What is known of a setting beside its name, type and default, which the dataclass field itself has."""

    purpose: str
    memory: str
    throughput: str
    typical: str
    formula: str
    when_unset: str  # what None, or an empty default, comes to
    minimum: float | None
    above: float | None  # like `minimum`, the bound itself excluded
    maximum: float | None
    unit: Literal["", "bytes", "tokens"]
    secret: bool
    not_built: str  # a sentence; not empty when any value but the default is refused


def setting(
    default: T,
    *,
    purpose: str,
    typical: str,
    memory: str = "No effect.",
    throughput: str = "No effect.",
    formula: str = "",
    when_unset: str = "",
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    unit: Literal["", "bytes", "tokens"] = "",
    secret: bool = False,
    not_built: str = "",
) -> T:
    """Declare one setting. The choices of a setting are the members of its `Literal` type.

    `unit` says which suffixes a number may be written with: "bytes" takes 512MB and 4GiB, "tokens" takes 32k (32,000)
    and 32K (32,768). `not_built` is the sentence that a person reads who sets it to anything but its default.
    """
    declaration = Declaration(
        purpose=purpose,
        memory=memory,
        throughput=throughput,
        typical=typical,
        formula=formula,
        when_unset=when_unset,
        minimum=minimum,
        above=above,
        maximum=maximum,
        unit=unit,
        secret=secret,
        not_built=not_built,
    )
    # dataclasses.field is typed the same way: it claims to return the default so that the class body type-checks.
    return field(default=default, metadata={_METADATA_KEY: declaration})


def declaration_of(declared: Field[Any]) -> Declaration:
    return cast(Declaration, declared.metadata[_METADATA_KEY])
