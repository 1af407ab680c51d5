"""Starts the engine process, starts it again when it ends, and ends it with the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

FIRST_RESTART_SECONDS = 1.0
LONGEST_RESTART_SECONDS = 30.0
STABLE_SECONDS = 60.0  # an engine that lived this long did not fail at its start: begin again with the short wait
SETTINGS_REFUSED = 2  # exit code: these settings can never work
TAIL_BYTES = 4096


def engine_command(socket_path: Path, settings_file: Path) -> list[str]:
    """The command that starts an engine which ends with this process."""
    return [
        *(sys.executable, "-m", "appliance.engine.process"),
        *("--socket", str(socket_path), "--settings", str(settings_file), "--parent-pid", str(os.getpid())),
    ]


def cpu_tuning() -> dict[str, str]:
    """Environment variables that make a step on the CPU faster. They are in the engine's systemd unit, too.

    Both are read before any of our code runs in a new process. Measured in docs/performance.md.
    """
    return {
        # torch's threads wait for each other some hundred times a step. Asleep, they wake too slowly; spinning for as
        # long as libgomp does by default, they keep the processor from the server. 5000 turns are about 0.1 ms.
        "OMP_WAIT_POLICY": "ACTIVE",
        "GOMP_SPINCOUNT": "5000",
        # Weights are streamed through once a step: with pages of 2 MiB that takes an eighth less time. And a prefill's
        # temporary tensors stay in the process: given back to the kernel at each operation, they would be zeroed and
        # mapped again page by page.
        "GLIBC_TUNABLES": (
            f"glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold={2**30}:glibc.malloc.trim_threshold={2**34}"
        ),
    }


def engine_environment() -> dict[str, str]:
    """This process's environment, and `cpu_tuning` unless somebody chose otherwise."""
    return {**cpu_tuning(), **os.environ}


class EngineSupervisor:
    """Keeps one engine process running.

    `on_exit(reason, final)` is called each time it ends by itself: a sentence for people, and whether it is for good,
    because the settings cannot work. What the engine writes to stderr is passed on.
    """

    def __init__(self, command: Sequence[str], *, on_exit: Callable[[str, bool], None]) -> None:
        self._command = command
        self._on_exit = on_exit
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the engine that runs now."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the engine in the background. Call from the main thread: the engine ends with the calling thread."""
        self._task = asyncio.create_task(self._keep_running(), name="engine-supervisor")

    async def stop(self, grace_seconds: float = 10.0) -> None:
        """End the engine, by force after `grace_seconds`, and do not start it again."""
        if self._task is None:
            return
        self._stopping = True
        process = self._process
        if process is not None:
            _signal(process, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), grace_seconds)
            _signal(process, signal.SIGKILL)
            await process.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def _keep_running(self) -> None:
        wait = FIRST_RESTART_SECONDS
        while True:
            began = time.monotonic()
            code, last_words = await self._run_once()
            if self._stopping:
                return
            if time.monotonic() - began > STABLE_SECONDS:
                wait = FIRST_RESTART_SECONDS
            final = code == SETTINGS_REFUSED
            reason = _describe_exit(code, last_words)
            self._on_exit(reason, final)
            if final:
                log.error("%s. It is not started again, as these settings cannot work", reason)
                return
            log.error("%s. Starting it again in %.0f s", reason, wait)
            await asyncio.sleep(wait)
            wait = min(wait * 2, LONGEST_RESTART_SECONDS)

    async def _run_once(self) -> tuple[int, str]:
        """Exit code (negative: the signal that killed it) and the last line of stderr."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=engine_environment(),
            start_new_session=True,  # Ctrl-C in the terminal is for the server, which then ends the engine in order
        )
        try:
            assert self._process.stderr is not None
            tail = await _forward(self._process.stderr)
            code = await self._process.wait()
        finally:
            if self._process.returncode is None:
                _signal(self._process, signal.SIGKILL)
            self._process = None
        lines = tail.decode(errors="replace").strip().splitlines()
        return code, lines[-1].strip() if lines else ""


async def _forward(stream: asyncio.StreamReader) -> bytes:
    """Pass the engine's log on until it closes; returns the end of it."""
    tail = b""
    while chunk := await stream.read(65536):
        sys.stderr.write(chunk.decode(errors="replace"))
        sys.stderr.flush()
        tail = (tail + chunk)[-TAIL_BYTES:]
    return tail


def _signal(process: asyncio.subprocess.Process, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signum)


def _describe_exit(code: int, last_words: str) -> str:
    if code >= 0:
        return f"The engine process ended with exit code {code}" + (f": {last_words}" if last_words else "")
    name = signal.Signals(-code).name
    hint = " (often the kernel's answer to too little memory: see dmesg)" if -code == signal.SIGKILL else ""
    return f"The engine process was killed by {name}{hint}"
