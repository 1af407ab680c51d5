"""The audit log: one JSON object a line, who did what with which key, and how it ended. Never a key, never a prompt."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from appliance.keys.errors import KeysError


class AuditLog:
    """Appends to a file, which several processes may do at once: a line is one write.

    A file that was moved away is begun anew with the next line, as logrotate expects. Lines go to the page cache, not
    to the disk, so no request waits for one.
    """

    def __init__(self, path: Path) -> None:
        """Raises `KeysError` when the file cannot be written."""
        self._path = path
        self._descriptor = self._open()

    def write(self, event: str, **facts: object) -> None:
        """`facts` that are None or empty are left out. Raises OSError when the disk is full."""
        said = {name: value for name, value in facts.items() if value not in (None, "", [])}
        line = json.dumps({"time": _now(), "event": event, **said}, ensure_ascii=False, default=str)
        if self._was_moved():
            os.close(self._descriptor)
            self._descriptor = self._open()
        os.write(self._descriptor, line.encode("utf-8", "backslashreplace") + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise KeysError(f"The audit log {self._path} cannot be written: {error.strerror}.") from error

    def _was_moved(self) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._descriptor))
        except OSError:
            return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
