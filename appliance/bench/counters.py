"""Token counts of a text, from the server itself or from a tokenizer on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from appliance.bench.vocabulary import VocabularyError
from appliance.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LocalCounter:
    tokenizer: Tokenizer

    async def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text))


@dataclass(frozen=True, slots=True)
class ServerCounter:
    """`POST /tokenize` as pagebox and vLLM have it."""

    session: aiohttp.ClientSession
    base_url: str
    model: str

    async def count(self, text: str) -> int:
        """Raises `VocabularyError` when the server can't say."""
        try:
            return await self._ask(text)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise VocabularyError(f"{self.base_url}/tokenize fails: {error or type(error).__name__}") from error

    async def _ask(self, text: str) -> int:
        body = {"model": self.model, "prompt": text}
        async with self.session.post(f"{self.base_url}/tokenize", json=body) as response:
            if response.status != 200:
                raise VocabularyError(f"{self.base_url}/tokenize answers {response.status}")
            reply: Any = msgspec.json.decode(await response.read())
        tokens = reply.get("tokens") if isinstance(reply, dict) else None
        if not isinstance(tokens, list):
            raise VocabularyError(f"{self.base_url}/tokenize answers no list of tokens")
        return len(tokens)
