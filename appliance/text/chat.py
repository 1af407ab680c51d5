"""A conversation becomes one text by the model's chat template (Jinja, sandboxed, by transformers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

# What apply_chat_template takes for itself: a client may set none of these through template arguments.
_RESERVED = frozenset(
    {
        "conversation",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)


class ChatTemplateError(ValueError):
    """The conversation can't be rendered; the message says why, for the client."""


def render_chat(
    pretrained: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None,
    add_generation_prompt: bool,
    continue_final_message: bool,
    kwargs: Mapping[str, Any],
) -> str:
    """The text of `messages` under the tokenizer's template, or under `chat_template`. Raises `ChatTemplateError`."""
    if chat_template is None and not pretrained.chat_template:
        raise ChatTemplateError(
            "this model has no chat template: start the server with --chat-template FILE, or use /v1/completions"
        )
    if not messages:
        raise ChatTemplateError("messages must not be empty")
    reserved = sorted(_RESERVED & kwargs.keys())
    if reserved:
        raise ChatTemplateError(f"chat_template_kwargs must not contain {', '.join(reserved)}")
    if add_generation_prompt and continue_final_message:
        raise ChatTemplateError("continue_final_message needs add_generation_prompt to be false")
    try:
        text = pretrained.apply_chat_template(
            [_with_joined_text(message) for message in messages],
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **kwargs,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"the chat template is not valid Jinja (line {error.lineno}): {error.message}"
        ) from error
    except jinja2.TemplateError as error:  # raise_exception() in a template, or a value that it needs is missing
        raise ChatTemplateError(f"the chat template refuses these messages: {error.message}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ChatTemplateError(f"the chat template fails on these messages: {error}") from error
    return str(text)


def _with_joined_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """`message` with its content as one text: parts are joined by line breaks, as most templates take only texts."""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    texts = []
    for part in content:
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ChatTemplateError(f"content parts of type {kind!r} are not supported: this model takes text only")
        texts.append(part["refusal"] if kind == "refusal" else part["text"])
    return {**message, "content": "\n".join(texts)}
