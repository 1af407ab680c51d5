"""From the bytes of a request body to its struct, with errors that name the field as the client wrote it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Set
from functools import cache
from typing import TypeVar

import msgspec

from appliance.protocol.openai.fields import HARMLESS, UNSUPPORTED

T = TypeVar("T", bound=msgspec.Struct)
D = TypeVar("D")

_PATH = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$")


# One escape of a JSON string (RFC 8259, section 7): a surrogate pair, half of one, or any other.
_HEX = rb"[0-9a-fA-F]"
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB]%b{2}\\u[dD][c-fC-F]%b{2}|(?P<half>u[dD][89a-fA-F]%b{2})|.)" % (_HEX, _HEX, _HEX), re.DOTALL
)


class RequestError(ValueError):
    """The body is not a valid request. `param` is the path of the field, such as `messages[0].role`."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def decode_request(body: bytes, struct: type[T]) -> T:
    """`body` (JSON) as `struct`. Raises `RequestError`.

    Two passes: the first looks at the names alone and skips the values, so that a name in no struct is met with a
    sentence of its own; the second decodes the values.
    """
    _check_names(_decode(body, _names_decoder), _field_names(struct))
    decoder: msgspec.json.Decoder[T] = _decoder(struct)
    return _decode(body, decoder)


_names_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@cache
def _decoder(struct: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(struct)


@cache
def _field_names(struct: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(struct))


def _decode(body: bytes, decoder: msgspec.json.Decoder[D]) -> D:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from None
    except UnicodeDecodeError:
        raise RequestError("The request body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise RequestError("The request body is nested too deeply.", code="invalid_json") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise _not_json(body, error) from None


def _not_json(body: bytes, error: Exception) -> RequestError:
    """msgspec's sentence, but for half of a surrogate pair, which it may call a body that was cut off."""
    half = next((match["half"] for match in _ESCAPE.finditer(body) if match["half"]), None)
    if half is None:
        return RequestError(f"The request body is not valid JSON: {error}", code="invalid_json")
    return RequestError(
        f"The request body has a string with the escape `\\{half.decode()}`, a lone surrogate (half of a UTF-16 pair), "
        "which stands for no character. Send both halves, or leave it out.",
        code="invalid_json",
    )


def _check_names(fields: dict[str, msgspec.Raw], known: Set[str]) -> None:
    for name, raw in fields.items():
        if name in known or name in HARMLESS:
            continue
        if name not in UNSUPPORTED:
            raise _unknown_field(name, known)
        value = _plain_value(raw)
        if value is not None and not any(value == neutral for neutral in UNSUPPORTED[name]):
            raise RequestError(
                f"`{name}` is not supported by this server; leave it out.", name, "unsupported_parameter"
            )


def _plain_value(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError:
        raise RequestError("The request body is not valid UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise RequestError("The request body is nested too deeply.", code="invalid_json") from None
    except msgspec.DecodeError as error:
        raise _not_json(bytes(raw), error) from None


def _unknown_field(name: str, known: Set[str]) -> RequestError:
    shown = name if len(name) <= 64 else name[:64] + "…"
    nearest = difflib.get_close_matches(shown, known | HARMLESS | UNSUPPORTED.keys(), n=1, cutoff=0.6)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return RequestError(f"Unknown field `{shown}`.{hint}", shown, "unknown_parameter")


def _validation_error(message: str) -> RequestError:
    """msgspec's sentence, taken apart: ``Expected `int`, got `str` - at `$.messages[0].role` ``."""
    match = _PATH.match(message)
    assert match is not None, message
    what, path = match["what"], match["path"] or ""
    if unknown := _UNKNOWN.match(what):
        param = _join(path, unknown["name"])
        return RequestError(f"Unknown field `{param}`.", param, "unknown_parameter")
    if missing := _MISSING.match(what):
        param = _join(path, missing["name"])
        return RequestError(f"Missing required field `{param}`.", param, "missing_required_parameter")
    if not path:
        return RequestError(f"The request body is invalid: {what}.")
    return RequestError(f"Invalid value for `{path}`: {what[0].lower()}{what[1:]}.", path, "invalid_type")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
