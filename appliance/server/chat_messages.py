"""Messages of a chat request as the chat template takes them."""

from __future__ import annotations

from typing import Any

from appliance.protocol.openai.chat import ChatMessage, ContentPart
from appliance.server.errors import bad_request


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """One dict a message, its content one text. Raises a 400 that names the message for what cannot be served."""
    if not messages:
        raise bad_request("`messages` must have at least one message.", "messages", "invalid_value")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: ChatMessage, path: str) -> dict[str, Any]:
    if message.role in ("tool", "function") or message.tool_call_id is not None:
        raise _unsupported(f"{path}.role", f"messages of role `{message.role}`")
    for name in ("audio", "function_call", "tool_calls"):
        if getattr(message, name):
            raise _unsupported(f"{path}.{name}", f"`{name}`")
    # OpenAI renamed the role; templates know the old name.
    result: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    result["content"] = _content(message, path)
    if message.name is not None:
        result["name"] = message.name
    if message.reasoning_content is not None:
        result["reasoning_content"] = message.reasoning_content
    return result


def _content(message: ChatMessage, path: str) -> str:
    content = message.content
    if content is None:
        if message.role == "assistant":
            return message.refusal or ""
        raise bad_request(f"`{path}.content` must not be null.", f"{path}.content", "invalid_value")
    if isinstance(content, str):
        return content
    return "\n".join(_text(part, f"{path}.content[{i}]") for i, part in enumerate(content))


def _text(part: ContentPart, path: str) -> str:
    if part.type != "text":
        raise _unsupported(f"{path}.type", f"content parts of type `{part.type[:64]}`")
    if part.text is None:
        raise bad_request(f"Missing required field `{path}.text`.", f"{path}.text", "missing_required_parameter")
    return part.text


def _unsupported(param: str, what: str) -> Exception:
    return bad_request(f"`{param}`: {what} are not supported by this server.", param, "unsupported_parameter")
