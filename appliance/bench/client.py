"""Sends one request, reads its event stream, and notes when what arrived."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
import msgspec

from appliance.bench.workload import Prompt

Endpoint = Literal["completions", "chat"]
ROUTES: Mapping[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}

SILENCE_SECONDS = 600.0  # without a single byte, after which a request counts as failed


@dataclass(frozen=True, slots=True)
class Target:
    """Where and how requests are sent. `extra` is added to every body and beats what is there."""

    base_url: str  # without /v1
    model: str | None
    endpoint: Endpoint = "completions"
    api_key: str | None = None
    ignore_eos: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.base_url + ROUTES[self.endpoint]

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Greedy, streamed, with the token counts at the end."""
        body: dict[str, Any] = {
            "max_tokens": prompt.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.model is not None:
            body["model"] = self.model
        if self.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt.content}]
        else:
            body["prompt"] = prompt.content
        if self.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self.extra}


@dataclass(slots=True)
class Record:
    """What became of one request. Times are `time.perf_counter()` seconds."""

    asked_tokens: int
    sent: float
    chunk_times: list[float] = field(default_factory=list)  # of each chunk that brought text
    ended: float = 0.0  # the last chunk with a choice, or the failure
    prompt_tokens: int | None = None  # None: the server did not say
    output_tokens: int = 0  # as the server says, else one for each chunk
    counted_by_server: bool = False
    cached_tokens: int = 0
    error: str | None = None  # its kind, the same words for alike failures
    error_detail: str = ""  # in the server's words


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    def has_text(self) -> bool:
        delta = self.delta or _Delta()
        return bool(self.text or delta.content or delta.reasoning or delta.reasoning_content)


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class StreamError(Exception):
    """A reply that is not a complete, successful stream. `kind` is the same for alike failures."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


_decoder = msgspec.json.Decoder(_Event)


def new_session(target: Target) -> aiohttp.ClientSession:
    """A session with as many connections as there are requests under way."""
    return aiohttp.ClientSession(
        headers=target.headers,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=SILENCE_SECONDS),
    )


async def send(session: aiohttp.ClientSession, target: Target, prompt: Prompt) -> Record:
    """Send `prompt` and read its stream to the end. A failure is in the record, never raised."""
    body = msgspec.json.encode(target.body(prompt))
    record = Record(prompt.output_tokens, time.perf_counter())
    try:
        async with session.post(target.url, data=body, headers={"Content-Type": "application/json"}) as response:
            if response.status != 200:
                raise _refusal(response.status, await response.read())
            await _follow(response, record)
    except StreamError as error:
        record.error, record.error_detail = error.kind, error.detail
    except TimeoutError as error:
        record.error, record.error_detail = f"timeout: nothing came for {SILENCE_SECONDS:.0f} s", str(error)
    except (aiohttp.ClientError, OSError) as error:
        record.error, record.error_detail = f"connection failed: {type(error).__name__}", str(error)
    if record.error is not None:
        record.ended = time.perf_counter()
    return record


async def _follow(response: aiohttp.ClientResponse, record: Record) -> None:
    finished = False
    async for data, arrived in _events(response):
        if data == b"[DONE]":
            finished = True
            continue
        try:
            event = _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise StreamError("malformed event in the stream", f"{error}: {data[:200]!r}") from error
        if event.error is not None:
            raise StreamError(f"error in the stream{_code(event.error)}", _message(event.error))
        if event.usage is not None:
            _take_usage(event.usage, record)
        if event.choices:
            record.ended = arrived
            finished = finished or event.choices[0].finish_reason is not None
            if event.choices[0].has_text():
                record.chunk_times.append(arrived)
    if not finished:
        raise StreamError("stream ended early", f"after {len(record.chunk_times)} chunks, without a finish reason")
    if not record.counted_by_server:
        record.output_tokens = len(record.chunk_times)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[bytes, float]]:
    """The `data` of each server-sent event with its time of arrival; comments and other fields are skipped."""
    rest = b""
    async for received in response.content.iter_any():
        arrived = time.perf_counter()
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip(), arrived


def _take_usage(usage: _Usage, record: Record) -> None:
    record.prompt_tokens = usage.prompt_tokens
    if usage.completion_tokens is not None:
        record.output_tokens, record.counted_by_server = usage.completion_tokens, True
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0


def _refusal(status: int, body: bytes) -> StreamError:
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return StreamError(f"HTTP {status}", body[:300].decode("utf-8", "replace"))
    if isinstance(error, dict):
        error = error.get("error") or error.get("detail") or error
    return StreamError(f"HTTP {status}{_code(error)}", _message(error))


def _code(error: Any) -> str:
    code = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    return f" {code}" if code else ""


def _message(error: Any) -> str:
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)
