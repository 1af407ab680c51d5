"""The body of a request as its struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web

from appliance.protocol.openai.decode import decode_request
from appliance.server.context import CONTEXT
from appliance.server.errors import ApiError
from appliance.server.request_record import RECORD

T = TypeVar("T", bound=msgspec.Struct)


async def read_request(request: web.Request, struct: type[T]) -> T:
    """Raises a 415, a 413, or a `RequestError` that names the field."""
    kind = request.content_type if "Content-Type" in request.headers else ""
    if kind != "application/json" and not kind.endswith("+json"):
        message = f"The request body must be JSON: send `Content-Type: application/json`, not `{kind or 'none'}`."
        raise ApiError(415, message, code="unsupported_media_type")
    try:
        async with request.app[CONTEXT].limits.limit(request[RECORD].started):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[CONTEXT].settings.server.max_request_bytes
        message = f"The request body is larger than the {limit} bytes that max-request-bytes allows."
        raise ApiError(413, message, code="request_too_large") from None
    except web.RequestPayloadError as error:
        raise ApiError(400, f"The request body could not be read: {error}", code="invalid_body") from None
    return decode_request(body, struct)


def json_response(body: msgspec.Struct, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
