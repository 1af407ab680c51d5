"""Errors that NGINX makes itself, in the form of OpenAI's API like all others."""

from __future__ import annotations

import json
from dataclasses import dataclass

HTTPS_ONLY = "This server speaks HTTPS only; use https:// and replace the API key, which was sent in clear."


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """`raised_as` is NGINX's number, which for some errors is one of its own; `status` is what the client sees.

    `retry_after` is in seconds; 0: repeating the request is no use.
    """

    raised_as: int
    status: int
    body: str
    retry_after: int


def error_body(status: int, message: str, code: str) -> str:
    """One line of JSON, with the `type` that the server process gives this status."""
    kinds = {403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def error_pages(max_body_bytes: int) -> list[ErrorPage]:
    def page(raised_as: int, code: str, message: str, *, status: int = 0, retry_after: int = 0) -> ErrorPage:
        status = status or raised_as
        return ErrorPage(raised_as, status, error_body(status, message, code), retry_after)

    too_large = f"The request body is larger than the {max_body_bytes} bytes that max-request-bytes allows."
    return [
        page(400, "invalid_http", "The request is not valid HTTP."),
        page(403, "forbidden", "This is not allowed here."),
        page(404, "unknown_url", "There is no such route on this server."),
        page(405, "method_not_allowed", "This method is not allowed here."),
        page(408, "request_timeout", "The request did not arrive in time.", retry_after=1),
        page(413, "request_too_large", too_large),
        page(414, "uri_too_long", "The URL is too long."),
        page(429, "rate_limit_exceeded", "Too many requests at once from this key or address.", retry_after=1),
        page(494, "headers_too_large", "The request headers are too large.", status=431),
        page(497, "https_only", HTTPS_ONLY, status=400),
        page(500, "front_error", "The server failed to handle this request; its log has the details."),
        page(502, "server_unavailable", "The server does not answer; it may be starting again.", retry_after=2),
        page(503, "server_unavailable", "The server cannot take this request now.", retry_after=2),
        page(504, "timeout", "The server did not answer in time."),
    ]
