"""Who sent a request, and what that key may do: models, priority, its share of the cache, how much in how much time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from aiohttp import web

from appliance.keys.record import KeyRecord
from appliance.keys.usage import KeyUsage, Level
from appliance.server.errors import ApiError
from appliance.server.request_record import RequestRecord

KeyLimit = Literal["requests", "tokens", "concurrency"]

# Of a reply whose length the client left open: reserving the rest of the context would let a key run one request at a
# time. What comes beyond is charged at the end.
ASSUMED_REPLY_TOKENS = 512
CONCURRENCY_RETRY_SECONDS = 1.0  # when a request will end is not known

OnRefusal = Callable[[str, KeyLimit], None]


class Caller:
    """The holder of one key, for one request. Without a record nothing is limited."""

    def __init__(self, label: str, record: KeyRecord | None, usage: KeyUsage, on_refusal: OnRefusal) -> None:
        """`label` names the key in logs and metrics, and pays under the fair policy; empty: no keys are configured."""
        self.label = label
        self._record = record
        self._usage = usage
        self._on_refusal = on_refusal
        self._held_tokens = 0
        self._requests: Level | None = None
        self._tokens: Level | None = None

    # ---- rights -----------------------------------------------------------------------------------------------------

    def may_use(self, model: str) -> bool:
        return self._record is None or self._record.allows(model)

    def priority(self, asked: int | None) -> int:
        """Lower goes first. A request may be less urgent than its key, never more."""
        if self._record is None:
            return asked or 0
        return self._record.priority if asked is None else max(asked, self._record.priority)

    def cache_salt(self, asked: str | None) -> str:
        """Keys of the file share cached prefixes within their group; how fast a prompt is tells others nothing."""
        if self._record is None:
            return asked or ""
        group = self._record.cache_group
        return f"{'group' if group else 'key'} {group or self._record.id} {asked or ''}"

    # ---- limits -----------------------------------------------------------------------------------------------------

    @contextmanager
    def request(self, done: RequestRecord) -> Iterator[None]:
        """Around one request, whose tokens `done` says at its end. Raises a 429 when there are too many."""
        key = self._record
        if key is None or (key.rpm is None and key.tpm is None and key.concurrency is None):
            yield
            return
        if key.tpm is not None:
            self._tokens = self._usage.tokens_left(key.id, key.tpm)
            if not self._tokens.remaining:  # before any work is put into it
                raise self._too_many_tokens(key.tpm, 1, self._tokens.reset_seconds - (key.tpm - 1) * 60 / key.tpm)
        place = self._usage.take_request(key.id, key.rpm, key.concurrency)
        self._requests = place.level
        if not place.admitted:
            raise self._too_many_requests(key, place.wait, place.running)
        try:
            yield
        finally:
            self._usage.end_request(key.id)
            if key.tpm is not None and self._held_tokens:
                used = done.prompt_tokens + done.completion_tokens
                self._usage.charge_tokens(key.id, key.tpm, used - self._held_tokens)

    def hold_tokens(self, prompt: int, reply: int, *, asked: bool) -> None:
        """Reserve the tokens of this request. `asked`: the client itself said how long the reply may be.

        Raises a 429 when they are not there.
        """
        key = self._record
        if key is None or key.tpm is None:
            return
        if not asked:
            reply = min(reply, ASSUMED_REPLY_TOKENS, max(0, key.tpm - prompt))
        if prompt + reply > key.tpm:
            self._on_refusal(self.label, "tokens")
            raise ApiError(
                429,
                f"This request may take {prompt + reply} tokens (prompt {prompt}, reply {reply}), and this API key may "
                f"use {key.tpm} a minute in all. Shorten the prompt, or ask for fewer tokens.",
                code="request_too_large",
                kind="tokens",
                headers={"X-Should-Retry": "false"},
                outcome="rejected",
            )
        wait, self._tokens = self._usage.take_tokens(key.id, key.tpm, prompt + reply)
        if wait:
            raise self._too_many_tokens(key.tpm, prompt + reply, wait)
        self._held_tokens = prompt + reply

    def headers(self) -> dict[str, str]:
        """OpenAI's x-ratelimit headers, for the limits that this key has."""
        found: dict[str, str] = {}
        for unit, level in (("Requests", self._requests), ("Tokens", self._tokens)):
            if level is not None:
                found[f"X-RateLimit-Limit-{unit}"] = str(level.limit)
                found[f"X-RateLimit-Remaining-{unit}"] = str(level.remaining)
                found[f"X-RateLimit-Reset-{unit}"] = duration(level.reset_seconds)
        return found

    def _too_many_requests(self, key: KeyRecord, wait: float, running: int) -> ApiError:
        if wait:
            self._on_refusal(self.label, "requests")
            message = f"This API key may send {key.rpm} requests a minute. Send it again in {duration(wait)}."
            return _rate_limited(message, "requests", wait)
        self._on_refusal(self.label, "concurrency")
        message = (
            f"This API key may have {key.concurrency} requests at a time, and {running} are running. Send it again "
            "when one has ended."
        )
        return _rate_limited(message, "concurrency", CONCURRENCY_RETRY_SECONDS)

    def _too_many_tokens(self, per_minute: int, wanted: int, wait: float) -> ApiError:
        self._on_refusal(self.label, "tokens")
        left = 0 if self._tokens is None else self._tokens.remaining
        message = (
            f"This API key may use {per_minute} tokens a minute; {left} are left now, and this request needs {wanted}. "
            f"Send it again in {duration(wait)}."
        )
        return _rate_limited(message, "tokens", wait)


CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 7.5s, 6m0s. Rounded up to the millisecond, so that waiting so long is enough."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{rest / 1000:g}s"


def _rate_limited(message: str, limit: KeyLimit, wait: float) -> ApiError:
    headers = {"Retry-After": str(math.ceil(wait)), "Retry-After-Ms": str(math.ceil(wait * 1000))}
    return ApiError(429, message, code="rate_limit_exceeded", kind=limit, headers=headers, outcome="rejected")
