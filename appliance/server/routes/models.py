"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from aiohttp import web

from appliance.protocol.openai.models import ModelCard, ModelList
from appliance.server.body import json_response
from appliance.server.caller import CALLER
from appliance.server.context import CONTEXT, ServerContext


async def list_models(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    return json_response(ModelList(data=[_card(context, name) for name in context.models_of(request[CALLER])]))


async def get_model(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    return json_response(_card(context, context.model_name(request.match_info["id"], request[CALLER])))


def _card(context: ServerContext, name: str) -> ModelCard:
    ready = context.engine.status.ready
    return ModelCard(
        id=name,
        created=context.created,
        root=context.settings.model.model,
        max_model_len=None if ready is None else ready.max_model_len,
    )
