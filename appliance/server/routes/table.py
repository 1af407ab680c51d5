"""Every route of the server and who may call it."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp.typedefs import Handler

from appliance.config import Settings
from appliance.server.auth import Access
from appliance.server.routes import about, chat, completions, models, probes, tokenization


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    handler: Handler
    access: Access
    quiet: bool = False  # asked every few seconds by machines: no log line, no count


def routes(settings: Settings) -> list[Route]:
    anyone, key = Access.ANYONE, Access.KEY_HOLDER
    table = [
        Route("GET", "/livez", probes.livez, anyone, quiet=True),
        Route("GET", "/readyz", probes.readyz, anyone, quiet=True),
        Route("GET", "/health", probes.readyz, anyone, quiet=True),
        Route("GET", "/ping", probes.readyz, anyone, quiet=True),
        Route("GET", "/startupz", probes.startupz, anyone, quiet=True),
        Route("POST", "/v1/completions", completions.completions, key),
        Route("POST", "/v1/chat/completions", chat.chat_completions, key),
        Route("GET", "/v1/models", models.list_models, key),
        Route("GET", "/v1/models/{id:.+}", models.get_model, key),
        Route("POST", "/tokenize", tokenization.tokenize, key),
        Route("POST", "/detokenize", tokenization.detokenize, key),
        Route("GET", "/version", about.version, key),
        Route("GET", "/openapi.json", about.openapi, key),
    ]
    if settings.server.enable_metrics:
        table.append(Route("GET", "/metrics", about.metrics, key, quiet=True))
    return table
