"""What is noted of one HTTP request while it runs: for its log line and its counters."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web

Outcome = Literal[
    "success", "client_error", "denied", "rejected", "unavailable", "timeout", "disconnected", "server_error"
]

MAX_REQUEST_ID_LENGTH = 128
_UNSAFE = re.compile(r"[^\x21-\x7e]")


@dataclass(slots=True)
class RequestRecord:
    """Times are seconds of `time.monotonic()`; the prompt tokens of `n` sequences count once."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    key: str = ""  # label of the API key; never the key itself
    outcome: Outcome | None = None  # set where it is known; what is left unset ended in success
    error_code: str | None = None
    prompt_excerpt: str | None = None  # only with max-log-len
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None

    def note_prompt(self, text: str, max_characters: int) -> None:
        """Keep the beginning of a prompt for the log line, only where the setting max-log-len asks for it."""
        if max_characters:
            self.prompt_excerpt = text[:max_characters]


RECORD: web.RequestKey[RequestRecord] = web.RequestKey("record", RequestRecord)


def request_id_of(header: str | None) -> str:
    """The client's own `x-request-id` as far as it is safe to log and to send back, else a new one."""
    kept = _UNSAFE.sub("", header or "")[:MAX_REQUEST_ID_LENGTH]
    return kept or f"req-{secrets.token_hex(12)}"
