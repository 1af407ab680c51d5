"""The one place where an exception becomes an HTTP error, with OpenAI's body for every status."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from appliance.engine.client import EngineError, EngineUnavailable
from appliance.protocol.openai.common import ErrorBody, ErrorDetail
from appliance.protocol.openai.decode import RequestError
from appliance.protocol.sampling_params import ParameterError
from appliance.server.request_record import RECORD, Outcome
from appliance.text.chat import ChatTemplateError

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 5

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """An answer that is not a success. `param` is the request field at fault, `code` is for programs.

    `kind` is what the body calls its type, where the status does not say it all.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.headers = dict(headers or {})
        self.outcome: Outcome = outcome or ("client_error" if status < 500 else "server_error")

    def body(self) -> bytes:
        return msgspec.json.encode(
            ErrorBody(error=ErrorDetail(message=self.message, type=self.kind, param=self.param, code=self.code))
        )


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str = "engine_unavailable") -> ApiError:
    """Nothing is wrong with the request; sending it again later may work."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_AFTER_SECONDS)}, outcome="unavailable")


def as_api_error(error: Exception, request_id: str) -> ApiError:
    """Every exception that a handler may raise, as the error that the client sees. Logs what nobody expected."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return bad_request(str(error), error.param, error.code)
        case ParameterError():
            return bad_request(str(error), error.param, "invalid_value")
        case ChatTemplateError():
            return bad_request(f"The messages cannot be rendered: {error}.", "messages", "chat_template_error")
        case EngineUnavailable():
            return unavailable(error.message)
        case EngineError():
            return ApiError(500, error.message, code="engine_error")
        case web.HTTPException():
            return _from_http_exception(error)
    log.error("Request %s failed unexpectedly", request_id, exc_info=error)
    return ApiError(500, "The server failed to handle this request; its log has the details.", code="internal_error")


def _from_http_exception(error: web.HTTPException) -> ApiError:
    match error:
        case web.HTTPNotFound():
            return ApiError(404, "There is no such route on this server.", code="unknown_url")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{error.method} is not allowed here; use {allowed}."
            return ApiError(405, message, code="method_not_allowed", headers={"Allow": allowed})
    return ApiError(error.status, error.text or error.reason, headers=dict(error.headers))


@web.middleware
async def errors_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raises into its response, unless the client is gone or the response has begun."""
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client is gone; nobody to answer
    except Exception as error:
        record = request[RECORD]
        api_error = as_api_error(error, record.request_id)
        record.outcome = api_error.outcome
        record.error_code = api_error.code
        # OpenAI's clients repeat every 5xx unless told: what failed or took too long once would only do so again.
        headers = {"X-Should-Retry": "true" if api_error.status in (429, 503) else "false", **api_error.headers}
        return web.Response(
            status=api_error.status, body=api_error.body(), content_type="application/json", headers=headers
        )
