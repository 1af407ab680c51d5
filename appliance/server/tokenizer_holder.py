"""The tokenizer, loaded in the background while the server already answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from appliance.server.errors import bad_request, unavailable
from appliance.text.tokenizer import Tokenizer
from appliance.text.tokenizer_files import TokenizerLoadError

log = logging.getLogger(__name__)

T = TypeVar("T")

# Below this a prompt is tokenized in about a millisecond, less than it costs everybody to wait for a thread.
INLINE_CHARACTERS = 4096

NO_TOKENIZER = "This server has no tokenizer (skip-tokenizer-init): send prompts as token ids to /v1/completions."


class TokenizerHolder:
    """Loads the tokenizer in a thread of its own, in which long prompts are tokenized as well."""

    def __init__(self, load: Callable[[], Tokenizer] | None) -> None:
        """None: there is none on purpose (skip-tokenizer-init)."""
        self._load = load
        self._executor = ThreadPoolExecutor(1, "tokenizer")
        self._tokenizer: Tokenizer | None = None
        self._task: asyncio.Task[None] | None = None
        self.failure: str | None = None  # why there is no tokenizer and never will be

    def start(self) -> None:
        if self._load is not None:
            self._task = asyncio.create_task(self._load_in_thread(self._load), name="load-tokenizer")

    async def loaded(self) -> bool:
        """Waits until loading is over. Whether there is what there should be."""
        if self._task is not None:
            await asyncio.wait([self._task])
        return self.ready

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        return self._tokenizer is not None or self._load is None

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises a 503 while it loads, or when it could not be loaded, and a 400 where there is none on purpose."""
        if self._load is None:
            raise bad_request(NO_TOKENIZER, code="no_tokenizer")
        if self._tokenizer is None:
            raise unavailable(self.failure or "The tokenizer is still loading.", "tokenizer_unavailable")
        return self._tokenizer

    @property
    def optional(self) -> Tokenizer | None:
        """As `tokenizer`, but None where there is none on purpose."""
        return None if self._load is None else self.tokenizer

    async def run(self, work: Callable[[Tokenizer], T], characters: int) -> T:
        """`work(tokenizer)`, in the thread if there is so much text that other requests would notice."""
        tokenizer = self.tokenizer
        if characters <= INLINE_CHARACTERS:
            return work(tokenizer)
        return await asyncio.get_running_loop().run_in_executor(self._executor, work, tokenizer)

    async def _load_in_thread(self, load: Callable[[], Tokenizer]) -> None:
        try:
            self._tokenizer = await asyncio.get_running_loop().run_in_executor(self._executor, load)
        except Exception as error:
            self.failure = f"The tokenizer could not be loaded: {error}"
            expected = isinstance(error, TokenizerLoadError)  # its message says all there is to know
            log.error(self.failure, exc_info=None if expected else error)
