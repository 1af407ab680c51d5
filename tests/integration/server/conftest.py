"""Fixtures: a real server in front of a null engine, one a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from appliance.text.tokenizer import Tokenizer
from tests.integration.server.byte_tokenizer import byte_tokenizer
from tests.integration.server.harness import Server, running_server


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture
async def start(tmp_path: Path, tokenizer: Tokenizer) -> AsyncIterator[Callable[..., Any]]:
    """`await start(api_key=(…), max_num_queued_reqs=…, engine_ready=False, load_tokenizer=…)` gives a `Server`."""
    async with AsyncExitStack() as stack:

        async def begin(**options: Any) -> Server:
            return await stack.enter_async_context(running_server(tmp_path / "engine.sock", tokenizer, **options))

        yield begin


@pytest.fixture
async def server(start: Callable[..., Any]) -> Server:
    return await start()
