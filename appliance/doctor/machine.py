"""The machine that is looked at, so that tests can show another one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    output: str  # standard output, and standard error if that is empty


class Machine:
    """Files below `root`, and programs."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, absolute: str | Path) -> Path:
        return self.root / str(absolute).lstrip("/")

    def text(self, absolute: str) -> str | None:
        """The contents of a file without white space around them; None if it cannot be read."""
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def has(self, absolute: str) -> bool:
        return self.path(absolute).exists()

    def free_bytes(self, absolute: str) -> tuple[int, int]:
        """Free for everybody, and total, of the file system that holds the path or its nearest parent."""
        path = self.path(absolute)
        while not path.exists():
            path = path.parent
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def run(self, command: Sequence[str]) -> Done | None:
        """None if there is no such program here, or it does not end."""
        program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *command[1:]], capture_output=True, text=True, check=False, timeout=COMMAND_SECONDS
            )
        except subprocess.TimeoutExpired:
            return None
        return Done(done.returncode, (done.stdout or done.stderr).strip())
