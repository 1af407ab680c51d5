"""The aiohttp application: every part put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from appliance.config import Settings
from appliance.engine.client import EngineClient
from appliance.keys.usage import KeyUsage
from appliance.protocol.seeds import seed_source
from appliance.server.admission import AdmissionQueue, WaitingCounts
from appliance.server.audit import Audit
from appliance.server.auth import ApiKeys, open_store
from appliance.server.context import CONTEXT, ServerContext
from appliance.server.cors import allowed_origin, cors_middleware
from appliance.server.errors import errors_middleware
from appliance.server.key_reload import KeyReload
from appliance.server.limits import TimeLimits
from appliance.server.metrics import Metrics
from appliance.server.middlewares import add_headers, auth_middleware, observe_middleware
from appliance.server.routes.table import Route, routes
from appliance.server.stats_log import watch_throughput
from appliance.server.tokenizer_holder import TokenizerHolder
from appliance.text.tokenizer import Tokenizer

_EXPOSED_HEADERS = ", ".join(
    [
        *("X-Request-Id", "OpenAI-Processing-Ms", "Retry-After", "Retry-After-Ms"),
        *(f"X-RateLimit-{what}-{unit}" for unit in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")),
    ]
)


def create_app(
    settings: Settings,
    engine: EngineClient,
    load_tokenizer: Callable[[], Tokenizer],
    waiting: WaitingCounts | None = None,
    key_usage: KeyUsage | None = None,
) -> web.Application:
    """The application in front of `engine`, which whoever calls this starts and closes.

    `load_tokenizer` runs in a thread once the application starts; until it returns, the server is up but not ready.
    `waiting` and `key_usage` are shared with other processes under the same limits. Takes over `engine.on_stats`.
    Raises `KeysError`.
    """
    names = settings.model.served_model_name or (settings.model.model,)
    limits = TimeLimits(settings.server.request_timeout)
    metrics = Metrics(names[0], engine, limits)
    engine.on_stats = metrics.engine_stats

    async def exposition() -> bytes:
        return metrics.exposition()

    store = open_store(settings.server)
    audit = Audit(settings.server.audit_log)
    scheduling = settings.scheduling
    context = ServerContext(
        settings=settings,
        engine=engine,
        tokenizers=TokenizerHolder(None if settings.model.skip_tokenizer_init else load_tokenizer),
        metrics=metrics,
        exposition=exposition,
        admission=AdmissionQueue(
            scheduling.max_num_queued_reqs, scheduling.max_num_queued_tokens, metrics.rejected, waiting
        ),
        limits=limits,
        keys=ApiKeys(settings.server.api_key, store),
        key_usage=key_usage or KeyUsage.alone(),
        key_reload=None if store is None else KeyReload(store, audit),
        audit=audit,
        draw_seed=seed_source(settings.model.seed),
        model_names=tuple(names),
    )
    table = routes(settings)
    prefixes = {"", settings.server.root_path.rstrip("/")}
    by_resource: dict[tuple[str, str], Route] = {}
    app = web.Application(client_max_size=settings.server.max_request_bytes)
    for prefix in prefixes:
        for route in table:
            method = app.router.add_get if route.method == "GET" else app.router.add_post
            added = method(prefix + route.path, route.handler)
            assert added.resource is not None
            by_resource[route.method, added.resource.canonical] = route
    app.middlewares.extend([observe_middleware(by_resource), errors_middleware])
    _add_cors(app, settings)
    app.middlewares.append(auth_middleware(by_resource))
    app.on_response_prepare.append(add_headers)
    app[CONTEXT] = context
    app.cleanup_ctx.append(_background)
    return app


def _add_cors(app: web.Application, settings: Settings) -> None:
    origins = settings.server.allowed_origins
    if not origins:
        return
    app.middlewares.append(cors_middleware(origins))

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Vary"] = "Origin"
        origin = allowed_origin(request, origins)
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS

    app.on_response_prepare.append(mark)


async def _background(app: web.Application) -> AsyncIterator[None]:
    context = app[CONTEXT]
    context.tokenizers.start()
    log_stats = not context.settings.server.disable_log_stats
    watcher = asyncio.create_task(watch_throughput(context.engine, context.metrics.collector, log_stats=log_stats))
    reload = None if context.key_reload is None else asyncio.create_task(context.key_reload.run(), name="key-reload")
    yield
    watcher.cancel()
    if reload is not None:
        reload.cancel()
    await context.tokenizers.close()
    context.audit.close()
