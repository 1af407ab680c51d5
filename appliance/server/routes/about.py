"""`GET /version`, `GET /metrics`, `GET /openapi.json`."""

from __future__ import annotations

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from appliance.server.body import json_response
from appliance.server.context import CONTEXT
from appliance.server.openapi import openapi_document
from appliance.version import __version__


class VersionBody(msgspec.Struct):
    version: str


async def version(request: web.Request) -> web.StreamResponse:
    return json_response(VersionBody(__version__))


async def metrics(request: web.Request) -> web.StreamResponse:
    body = await request.app[CONTEXT].exposition()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def openapi(request: web.Request) -> web.StreamResponse:
    document = openapi_document(request.app[CONTEXT].settings.server.root_path)
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")
