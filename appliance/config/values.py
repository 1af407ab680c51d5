"""From what a person wrote to a value of the declared type and range, and back to words."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from appliance.config.catalog import Setting
from appliance.config.declaration import Declaration
from appliance.config.errors import ConfigError, suggestion

_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
_WITH_UNIT = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([A-Za-z]+)")
_SWITCH_WORDS = MappingProxyType(
    {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
)
_BYTES = MappingProxyType(
    {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    | {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
)
# The case matters, as it does for vLLM: 32k is 32,000 and 32K is 32,768.
_TOKENS = MappingProxyType({"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20})
_MASK = "***"


def from_text(setting: Setting, text: str) -> Any:
    """What one word on the command line or in the environment means; the word itself where it means nothing."""
    text = text.strip()
    base = setting.shape.base
    if base is bool:
        return switch_from_text(text)
    if base is int and _WHOLE.fullmatch(text):
        return int(text)
    if base is float:
        try:
            return float(text)
        except ValueError:
            return text
    if base is dict:
        return _from_json(text)
    return text


def switch_from_text(text: str) -> bool | str:
    """True or False for the usual words; the text itself where it is neither."""
    return _SWITCH_WORDS.get(text.strip().lower(), text)


def from_texts(setting: Setting, texts: list[str]) -> list[Any]:
    """As `from_text`, for a setting that takes several values: words, or one JSON list."""
    if len(texts) == 1 and isinstance(several := _from_json(texts[0]), list):
        return several
    return [from_text(setting, text) for text in texts]


def from_comma_list(setting: Setting, text: str) -> list[Any]:
    """Several values in one environment variable: a comma between them, or a JSON list where a value has commas."""
    return from_texts(setting, [text] if isinstance(_from_json(text), list) else text.split(","))


def converted(setting: Setting, value: Any, origin: str) -> Any:
    """`value` in the declared type. Raises ConfigError, naming `origin`, for a wrong type, range or choice."""
    shape = setting.shape
    if value is None and shape.nullable:
        return None
    if shape.many:
        several = value if isinstance(value, list | tuple) else [value]
        return tuple(_converted_one(setting, one, origin) for one in several)
    return _converted_one(setting, value, origin)


def shown(setting: Setting, value: Any) -> str:
    """A value in the words of the command line; secrets are masked."""
    if value is None or value in ((), ""):
        return "unset"
    if setting.declaration.secret:
        return ", ".join(_MASK for _ in value)
    return _plain(value)


def masked(setting: Setting, value: Any) -> Any:
    """The value as it may be shown in JSON."""
    return tuple(_MASK for _ in value) if setting.declaration.secret else value


def expectation(setting: Setting) -> str:
    """What a value has to be, to follow "must be" and to stand in the reference."""
    shape, declaration = setting.shape, setting.declaration
    if shape.base is bool:
        return "true or false"
    if shape.base is None:
        return f"one of {', '.join(shape.words)}"
    if shape.base is dict:
        return "a JSON object"
    if shape.base is str:
        return "text that is not empty" if shape.many or shape.nullable else "text"
    number = "a whole number" if shape.base is int else "a number"
    if declaration.unit == "bytes":
        number = "a size in bytes such as 4GiB or 512MB"
    words = "".join(f", or {word}" for word in shape.words)
    return f"{number}{_bounds(declaration)}{words}"


def _bounds(declaration: Declaration) -> str:
    least, most = declaration.minimum, declaration.maximum
    if least is not None and most is not None:
        return f" from {_plain(least)} to {_plain(most)}"
    if declaration.above is not None and most is not None:
        return f" above {_plain(declaration.above)} and at most {_plain(most)}"
    return "" if least is None else f", at least {_plain(least)}"


def _converted_one(setting: Setting, value: Any, origin: str) -> Any:
    shape = setting.shape
    if isinstance(value, str) and value in shape.words:
        return value
    number = _number(setting, value)
    if number is not None and _in_range(setting, number):
        return number
    if shape.base is bool and isinstance(value, bool):
        return value
    if shape.base is str and isinstance(value, str) and (value or not (shape.many or shape.nullable)):
        return value
    if shape.base is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise _refusal(setting, value, origin)


def _number(setting: Setting, value: Any) -> int | float | None:
    if isinstance(value, bool):  # bool is a subclass of int
        return None
    base, unit = setting.shape.base, setting.declaration.unit
    if base is int and isinstance(value, int):
        return value
    if base is int and unit and isinstance(value, str):
        return _with_unit(value, unit)
    if base is float and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def _with_unit(text: str, unit: str) -> int | None:
    match = _WITH_UNIT.fullmatch(text.strip())
    if match is None:
        return None
    factor = _BYTES.get(match[2].lower()) if unit == "bytes" else _TOKENS.get(match[2])
    return None if factor is None else int(Fraction(match[1]) * factor)


def _in_range(setting: Setting, number: int | float) -> bool:
    declared = setting.declaration
    return (
        (declared.minimum is None or number >= declared.minimum)
        and (declared.above is None or number > declared.above)
        and (declared.maximum is None or number <= declared.maximum)
    )


def _refusal(setting: Setting, value: Any, origin: str) -> ConfigError:
    what = "another type of value" if setting.declaration.secret else _quoted(value)
    sentence = f"{setting.title} must be {expectation(setting)}, not {what} ({origin})"
    if setting.shape.base is str and isinstance(value, int | float):
        return ConfigError(f"{sentence}; put it in quotes.")
    if isinstance(value, str) and setting.shape.words:
        return ConfigError(sentence + suggestion(value, setting.shape.words))
    return ConfigError(f"{sentence}.")


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _quoted(value: Any) -> str:
    return repr(value) if isinstance(value, str | list | tuple) else _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    if isinstance(value, Mapping):
        return json.dumps(value, default=str)
    return str(value)
