"""`pagebox spot-watcher` as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def running_watcher(
    folder: Path, *flags: str, end: signal.Signals = signal.SIGTERM, **environment: str
) -> AsyncIterator[Path]:
    """Its state is in `folder`, its server's admin socket `folder`/admin.sock. Yields the file of its log."""
    log = folder / "log"
    command = [sys.executable, "-m", "appliance.cli.main", "spot-watcher"]
    places = ["--watcher-state-dir", str(folder), "--admin-socket", str(folder / "admin.sock")]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PAGEBOX_"))}
    with log.open("ab") as stream:
        process = await asyncio.create_subprocess_exec(
            *command, *places, *flags, env=inherited | environment, stdout=stream, stderr=stream
        )
    try:
        yield log
        assert process.returncode is None, log.read_text()
    finally:
        if process.returncode is None:
            process.send_signal(end)
        code = await process.wait()
    assert code == (0 if end == signal.SIGTERM else -end), log.read_text()
