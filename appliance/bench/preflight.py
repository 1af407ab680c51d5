"""Asks a server, before anything is measured, whether it is there and ready, takes the key, and has the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from appliance.config.errors import suggestion

_TIMEOUT = aiohttp.ClientTimeout(total=30)


class PreflightError(Exception):
    """The benchmark can't begin; the message says why and what to do."""


async def find_model(session: aiohttp.ClientSession, base_url: str, wanted: str | None) -> str:
    """The model to ask for: `wanted`, or the server's first. Raises `PreflightError`.

    A server that has no list of models is believed to have `wanted`.
    """
    await _check_ready(session, base_url)
    status, body = await _get(session, f"{base_url}/v1/models")
    if status in (401, 403):
        raise PreflightError(
            f"{base_url} refuses the request: {_message(body)} Give a valid key with --api-key, or in the environment "
            "variable PAGEBOX_API_KEY"
        )
    names = _model_names(body) if status == 200 else None
    if names is None:
        if wanted is not None:
            return wanted
        raise PreflightError(
            f"{base_url}/v1/models answers {status} and no list of models. Is this the address of an OpenAI-compatible "
            "server (--base-url, without /v1)? If it is, name the model with --model"
        )
    if not names:
        raise PreflightError(f"{base_url} has no model")
    if wanted is not None and wanted not in names:
        raise PreflightError(f"{base_url} has no model {wanted!r}, but {', '.join(names)}{suggestion(wanted, names)}")
    return wanted or names[0]


async def _check_ready(session: aiohttp.ClientSession, base_url: str) -> None:
    status, body = await _get(session, f"{base_url}/readyz")
    if status == 503:
        reason = str((body.get("reason") if isinstance(body, dict) else None) or "it does not say why").rstrip(".")
        raise PreflightError(f"{base_url} is not ready: {reason}. Wait until {base_url}/readyz answers 200")


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, Any]:
    """Status and decoded body, None for one that is not JSON."""
    try:
        async with session.get(url, timeout=_TIMEOUT) as response:
            body = await response.read()
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise PreflightError(f"--base-url: {url!r} is not an HTTP address such as http://127.0.0.1:8000") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise PreflightError(
            f"no server answers at {url} ({_reason(error)}). Start one with `pagebox serve MODEL`, or give its address "
            "with --base-url"
        ) from error
    try:
        return response.status, msgspec.json.decode(body)
    except msgspec.DecodeError:
        return response.status, None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing came within {_TIMEOUT.total:.0f} s"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # aiohttp's own words repeat the address as a tuple
    return str(getattr(error, "strerror", None) or error)


def _model_names(body: Any) -> Sequence[str] | None:
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        return None
    return [card["id"] for card in body["data"] if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "it does not say why").rstrip(".") + "."
