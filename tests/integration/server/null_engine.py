"""An engine without a model on a real Unix socket: fixed text, one byte a token, one token a step."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from appliance.protocol.wire import (
    FRAME_HEADER_BYTES,
    AbortRequests,
    AddRequest,
    EngineReady,
    FromEngine,
    Heartbeat,
    PhaseChange,
    Ping,
    SchedulerStats,
    StepOutputs,
    TokenDelta,
    TokenLogprobs,
    decode_to_engine,
    encode,
)

REPLY = b"The quick brown fox jumps over the lazy dog \xe2\x82\xac5. "
EOS = 257
MAX_MODEL_LEN = 256
VOCAB_SIZE = 260


@dataclass
class NullEngine:
    """`hold` keeps everything queued; `mute` answers no ping; a request whose prompt begins with one of
    `failing_first_tokens` fails alone."""

    path: Path
    step_seconds: float = 0.0
    hold: bool = False
    mute: bool = False
    reply: bytes = REPLY
    reply_tokens: int | None = None  # then the end-of-sequence token
    failing_first_tokens: set[int] = field(default_factory=set)
    seen: list[AddRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, tuple[AddRequest, int]] = field(default_factory=dict)
    steps: int = 0
    generated: int = 0
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _task: asyncio.Task[None] | None = None
    _work: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, *, ready: bool = True) -> None:
        self._ready = ready
        self._server = await asyncio.start_unix_server(self._connected, str(self.path))
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        await asyncio.sleep(0.01)  # the handlers notice
        self.path.unlink(missing_ok=True)

    def become_ready(self) -> None:
        self._ready = True
        self._send(self._engine_ready())

    def change_phase(self, message: PhaseChange) -> None:
        self._send(message)

    def _engine_ready(self) -> EngineReady:
        return EngineReady("null", MAX_MODEL_LEN, VOCAB_SIZE, 16, 64, 8, 512, "float32", "cpu", 0.1)

    def _stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=0 if self.hold else len(self.running),
            num_waiting=len(self.running) if self.hold else 0,
            kv_cache_usage=min(1.0, len(self.running) / 64),
            steps=self.steps,
            generation_tokens=self.generated,
            iteration_tokens=len(self.running),
        )

    def _send(self, message: FromEngine) -> None:
        for writer in self._writers:
            writer.write(encode(message))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(encode(self._engine_ready() if self._ready else PhaseChange("loading_weights", "Half way", 0.5)))
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(FRAME_HEADER_BYTES), "big")
                self._received(decode_to_engine(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.running.clear()

    def _received(self, message: object) -> None:
        match message:
            case AddRequest():
                self.seen.append(message)
                self.running[message.request_id] = (message, 0)
                self._work.set()
            case AbortRequests():
                for request_id in message.request_ids:
                    self.aborted.append(request_id)
                    self.running.pop(request_id, None)
                self._send(Heartbeat(self._stats(), bool(self.running)))
            case Ping() if not self.mute:
                self._send(Heartbeat(self._stats(), bool(self.running)))

    async def _loop(self) -> None:
        while True:
            if self.hold or not self.running:
                self._work.clear()
                if self.hold:
                    await asyncio.sleep(0.005)
                else:
                    await self._work.wait()
                continue
            self.steps += 1
            outputs = [self._step(request, done) for request, done in list(self.running.values())]
            self._send(StepOutputs(outputs, self._stats()))
            await asyncio.sleep(self.step_seconds)

    def _step(self, request: AddRequest, done: int) -> TokenDelta:
        sampling = request.sampling
        if request.prompt_token_ids[0] in self.failing_first_tokens:
            del self.running[request.request_id]
            return TokenDelta(request.request_id, [], finish_reason="error", error="This request cannot be computed")
        token = self.reply[done % len(self.reply)]
        if self.reply_tokens is not None and done == self.reply_tokens:
            token = EOS
        self.generated += 1
        self.running[request.request_id] = (request, done + 1)
        reason = "stop" if token == EOS else "length" if done + 1 == sampling.max_tokens else None
        if reason is not None:
            del self.running[request.request_id]
        first = done == 0
        prompt_logprobs: list[TokenLogprobs | None] | None = None
        if first and sampling.prompt_logprobs is not None:
            prompt = request.prompt_token_ids
            prompt_logprobs = [None, *(_logprobs(token, sampling.prompt_logprobs) for token in prompt[1:])]
        return TokenDelta(
            request.request_id,
            [token],
            logprobs=None if sampling.logprobs is None else [_logprobs(token, sampling.logprobs)],
            finish_reason=reason,  # type: ignore[arg-type]
            num_cached_tokens=3 if first else 0,
            prompt_logprobs=prompt_logprobs,
            queue_time=0.001 if first else None,
            prefill_time=0.002 if first else None,
        )


def _logprobs(token: int, k: int) -> TokenLogprobs:
    """The token is the most likely; the ids after it follow."""
    likely = [(token + i) % 256 for i in range(k)]
    return TokenLogprobs([token, *likely], [-0.5, *(-0.5 - i for i in range(k))], 1)
