"""The pepper: a secret of the machine, without which the file of keys verifies nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from appliance.keys.errors import KeysError
from appliance.keys.private_files import write_private

CREDENTIAL = "api-keys-pepper"  # its name among systemd's credentials

_LEAST_BYTES = 32


def pepper_place(given: str | None, keys: str, environ: Mapping[str, str]) -> str:
    """Where the pepper is: as `given`, else systemd's credential, else beside the file of keys. Raises `KeysError`."""
    if given:
        return given
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if folder and (Path(folder) / CREDENTIAL).exists():
        return str(Path(folder) / CREDENTIAL)
    if "://" in keys:
        raise KeysError(
            f"Keys from {keys} need their pepper: set api-keys-pepper to its file, or to another parameter or secret."
        )
    return str(Path(keys).with_suffix(".pepper"))


def pepper_of(data: bytes, origin: str) -> bytes:
    """The pepper in the contents of its file. Raises `KeysError`."""
    pepper = data.strip()
    if len(pepper) < _LEAST_BYTES:
        raise KeysError(f"The pepper in {origin} has {len(pepper)} bytes; it needs {_LEAST_BYTES} random ones.")
    return pepper


def create_pepper(path: Path) -> None:
    """A new pepper of 256 bits, readable as the file of keys is. Raises `KeysError`, also when there is one already."""
    if os.path.lexists(path):
        raise KeysError(f"{path} exists already.")
    write_private(path, secrets.token_hex(32).encode() + b"\n")
