"""The kernel's log, from wherever this process may read it."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

KERNEL_LOG = Path("/dev/kmsg")
JOURNALCTL = "journalctl"

_RECORD_BYTES = 8192  # the longest that the kernel hands out; a shorter buffer is an error
_MOST_LINES = 100_000


class KernelLogError(Exception):
    """It cannot be read. The text is for people."""


class KernelLog(Protocol):
    async def new_messages(self) -> list[str]:
        """Those since the last call, at first all of this boot. Raises KernelLogError."""
        ...

    async def close(self) -> None: ...


class Kmsg:
    """The kernel's own buffer; needs CAP_SYSLOG on most systems. Documentation/ABI/testing/dev-kmsg of the kernel."""

    def __init__(self, file: Path = KERNEL_LOG) -> None:
        """Raises OSError."""
        self._descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._unfinished = b""

    async def new_messages(self) -> list[str]:
        try:
            return [message for line in self._lines() if (message := _from_the_kernel(line)) is not None]
        except OSError as error:
            raise KernelLogError(f"the kernel's log cannot be read: {error.strerror}") from error

    async def close(self) -> None:
        os.close(self._descriptor)

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                chunk = os.read(self._descriptor, _RECORD_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:  # records were overwritten before they were read: go on after them
                    continue
                raise
            if not chunk:
                return
            *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)


class Journal:
    """The kernel's messages in systemd's journal, through journalctl: the group systemd-journal may read them."""

    def __init__(self, program: str = JOURNALCTL) -> None:
        self._program = program
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lines: list[str] = []

    async def new_messages(self) -> list[str]:
        if self._process is None:
            await self._start()
        elif self._reader is not None and self._reader.done():
            code = await self._process.wait()
            self._process = self._reader = None
            raise KernelLogError(f"{self._program}, which reads the kernel's log, ended with code {code}")
        found, self._lines = self._lines, []
        return found

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _start(self) -> None:
        flags = ("--dmesg", "--boot", "--follow", "--no-tail", "--output=cat", "--quiet")
        try:
            self._process = await asyncio.create_subprocess_exec(
                self._program,
                *flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                limit=1 << 20,
            )
        except OSError as error:
            raise KernelLogError(f"the kernel's log cannot be read: {self._program}: {error.strerror}") from error
        assert self._process.stdout is not None
        self._reader = asyncio.create_task(self._read(self._process.stdout))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            self._lines.append(line.decode(errors="replace").rstrip("\n"))
            del self._lines[:-_MOST_LINES]


def open_kernel_log() -> KernelLog:
    """/dev/kmsg where this process may read it, else the journal."""
    try:
        return Kmsg()
    except OSError:
        return Journal()


def _from_the_kernel(record: str) -> str | None:
    """The message of one record of /dev/kmsg; None for what a program wrote there, and for records' further lines."""
    head, semicolon, message = record.partition(";")
    priority = head.partition(",")[0]
    is_kernel = bool(semicolon) and priority.isdecimal() and int(priority) >> 3 == 0  # no facility: the kernel's own
    return message if is_kernel else None
