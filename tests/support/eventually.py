"""Waiting in a test for what happens soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Returns when `holds` is true. The time is only there for a test that fails."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)
