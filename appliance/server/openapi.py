"""The OpenAPI description of the server, made from the structs that decode its requests."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.protocol.openai.chat import ChatCompletionRequest, ChatCompletionResponse
from appliance.protocol.openai.common import ErrorBody
from appliance.protocol.openai.completions import CompletionRequest, CompletionResponse
from appliance.protocol.openai.models import ModelCard, ModelList
from appliance.protocol.openai.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from appliance.version import __version__

# path -> method, summary, request body, response body
_OPERATIONS: dict[str, tuple[str, str, type | None, type | None]] = {
    "/v1/completions": ("post", "Continue a text", CompletionRequest, CompletionResponse),
    "/v1/chat/completions": ("post", "Answer a conversation", ChatCompletionRequest, ChatCompletionResponse),
    "/v1/models": ("get", "The models of this server", None, ModelList),
    "/v1/models/{id}": ("get", "One model", None, ModelCard),
    "/tokenize": ("post", "Token ids of a text or a conversation", TokenizeRequest, TokenizeResponse),
    "/detokenize": ("post", "Text of token ids", DetokenizeRequest, DetokenizeResponse),
    "/version": ("get", "The version of this server", None, None),
    "/metrics": ("get", "Metrics for Prometheus", None, None),
    "/openapi.json": ("get", "This document", None, None),
    "/livez": ("get", "The server process answers", None, None),
    "/readyz": ("get", "A request sent now would be decoded now", None, None),
    "/health": ("get", "As /readyz", None, None),
    "/ping": ("get", "As /readyz", None, None),
    "/startupz": ("get", "The start is over", None, None),
}
_PROBES = {"/livez", "/readyz", "/health", "/ping", "/startupz"}


def openapi_document(root_path: str) -> dict[str, Any]:
    """OpenAPI 3.1, as plain data."""
    bodies = {ErrorBody, *(body for _, _, *both in _OPERATIONS.values() for body in both if body is not None)}
    ordered = sorted(bodies, key=lambda body: body.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    schema_of = dict(zip(ordered, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "pagebox", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "paths": {path: _path(path, schema_of) for path in _OPERATIONS},
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def _path(path: str, schema_of: dict[type, dict[str, Any]]) -> dict[str, Any]:
    method, summary, request, response = _OPERATIONS[path]
    operation: dict[str, Any] = {
        "summary": summary,
        "responses": {
            "200": _content("Success", schema_of[response]) if response else {"description": "Success"},
            "default": _content("An error", schema_of[ErrorBody]),
        },
    }
    if request is not None:
        operation["requestBody"] = {"required": True, **_content(None, schema_of[request])}
    if "{id}" in path:
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    if path in _PROBES:
        operation["security"] = []
    return {method: operation}


def _content(description: str | None, schema: dict[str, Any]) -> dict[str, Any]:
    described = {} if description is None else {"description": description}
    return {**described, "content": {"application/json": {"schema": schema}}}
