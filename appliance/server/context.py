"""What the handlers of one application share."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from appliance.config import Settings
from appliance.engine.client import EngineClient
from appliance.keys.usage import KeyUsage
from appliance.lifecycle.drain_planner import Outlook
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import EngineReady
from appliance.server.admission import AdmissionQueue
from appliance.server.audit import Audit
from appliance.server.auth import ApiKeys
from appliance.server.caller import Caller
from appliance.server.draining import refused
from appliance.server.errors import ApiError, unavailable
from appliance.server.key_reload import KeyReload
from appliance.server.limits import TimeLimits
from appliance.server.metrics import Metrics
from appliance.server.tokenizer_holder import TokenizerHolder
from appliance.version import __version__

SYSTEM_FINGERPRINT = f"pagebox-{__version__}"


@dataclass(slots=True)
class ServerContext:
    settings: Settings
    engine: EngineClient
    tokenizers: TokenizerHolder
    metrics: Metrics
    exposition: Callable[[], Awaitable[bytes]]  # what /metrics answers
    admission: AdmissionQueue
    limits: TimeLimits
    keys: ApiKeys
    key_usage: KeyUsage
    key_reload: KeyReload | None  # None: there is no file of keys
    audit: Audit
    draw_seed: Callable[[], int]  # for requests without a seed
    model_names: tuple[str, ...]  # the first is the one in replies
    started: float = field(default_factory=time.monotonic)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False  # only work is taken that can end before a deadline
    drained: bool = False  # none is taken any more
    has_started: bool = False  # the engine was ready once

    def models_of(self, caller: Caller) -> list[str]:
        """The names that this caller may ask for."""
        return [name for name in self.model_names if caller.may_use(name)]

    def model_name(self, asked: str | None, caller: Caller) -> str:
        """The name to answer with. Raises a 404 for a model that is not served, a 403 for one that the key has not."""
        allowed = self.models_of(caller)
        if asked is None and allowed:
            return allowed[0]
        if asked in allowed:
            return asked
        if asked is None or asked in self.model_names:
            message = f"This API key may not use the model `{asked or self.model_names[0]}`."
            raise ApiError(403, message, param="model", code="model_not_allowed", outcome="denied")
        names = ", ".join(allowed) or "none for this API key"
        raise ApiError(
            404,
            f"The model `{asked[:128]}` does not exist; this server has {names}.",
            param="model",
            code="model_not_found",
        )

    def reload_keys(self) -> None:
        """Read the file of keys again, if there is one."""
        if self.key_reload is not None:
            self.key_reload.ask()

    def ready_engine(self) -> EngineReady:
        """The numbers of the engine. Raises a 503 that says why it cannot take work now."""
        if self.drained:
            raise refused("This server is about to end and takes no new requests.")
        reason = self._not_decoding_reason()
        ready = self.engine.status.ready
        if reason is not None or ready is None:
            raise unavailable(reason or "The engine is not ready.")
        return ready

    def not_ready_reason(self) -> str | None:
        """Why no new requests should be sent here, in a sentence; None when they should."""
        return "The server is shutting down." if self.draining else self._not_decoding_reason()

    def check_can_finish(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Raises a 503 for a request that would most probably not end before the deadline of a drain."""
        seconds_left, told = self.limits.drain_seconds_left, self.engine.status.stats.drain
        if seconds_left is None:
            return
        most = params.max_tokens or prompt_tokens
        least = most if params.ignore_eos else params.min_tokens
        if told is not None:
            outlook = Outlook(told.start, told.seconds_per_prompt_token, told.seconds_per_token, told.typical_tokens)
            if outlook.fits(params.n * prompt_tokens, least, most, seconds_left):
                return
        raise refused(f"This server ends in {seconds_left:.0f} s, and the request would take longer.")

    def _not_decoding_reason(self) -> str | None:
        """Why this server cannot decode a token now."""
        status = self.engine.status
        if not self.engine.is_ready():
            if status.phase == "ready":
                return _stall_reason(status.last_step_age, status.heartbeat_age)
            return f"The engine is not ready: {status.detail or status.phase.replace('_', ' ')}"
        if not self.tokenizers.ready:
            return self.tokenizers.failure or "The tokenizer is still loading."
        return None


def _stall_reason(step_age: float | None, heartbeat_age: float | None) -> str:
    if step_age is not None:
        return f"The engine is stuck: it has work but its last step was {step_age:.0f} s ago."
    if heartbeat_age is not None:
        return f"The engine is stuck: it has not answered for {heartbeat_age:.0f} s."
    return "The engine does not answer."


CONTEXT: web.AppKey[ServerContext] = web.AppKey("context", ServerContext)
