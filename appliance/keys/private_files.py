"""Files that others must not read: how they are read, and written in one piece."""

from __future__ import annotations

import fcntl
import grp
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.keys.errors import KeysError

GROUP = "pagebox"  # that the server runs in, where the package is installed

_NOT_PRIVATE = stat.S_IWGRP | stat.S_IRWXO


def read_private(path: Path, what: str) -> bytes:
    """Raises `KeysError` for a file that is missing, or that others may read or change."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & _NOT_PRIVATE:
                raise KeysError(
                    f"{what} {path} has mode {stat.S_IMODE(mode):04o}, so others may read or change it: "
                    f"`chmod 640 {path}`, or 600."
                )
            return file.read()
    except OSError as error:
        raise KeysError(f"{what} {path} cannot be read: {error.strerror}.") from error


def write_private(path: Path, data: bytes) -> None:
    """Replace the file at once: whoever reads sees all of the old or all of the new.

    Owner and mode stay as they are. A new file has mode 0600; written by root on a machine that has the group `pagebox`
    it is 0640 and that group's. Raises `KeysError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        owner, group, mode = _ownership(path)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if os.geteuid() == 0:
                os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise KeysError(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Nobody else who asks for it changes files of `folder` in the block. The lock leaves no file behind."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeysError(f"The folder {folder} cannot be opened: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ownership(path: Path) -> tuple[int, int, int]:
    """Owner, group and mode for a file at `path`."""
    try:
        found = path.stat()
    except FileNotFoundError:
        group = _service_group() if os.geteuid() == 0 else None
        return os.geteuid(), os.getegid() if group is None else group, 0o600 if group is None else 0o640
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & ~_NOT_PRIVATE


def _service_group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
