"""One log line a request. Never its prompt, unless the setting max-log-len asks for its beginning."""

from __future__ import annotations

import logging
import time

from appliance.server.request_record import Outcome, RequestRecord

log = logging.getLogger("appliance.server.request")


def log_request(record: RequestRecord, method: str, route: str, status: int, outcome: Outcome) -> None:
    fields: dict[str, object] = {
        "request_id": record.request_id,
        "method": method,
        "route": route,
        "key": record.key,
        "status": status or None,
        "outcome": outcome,
        "code": record.error_code,
        "prompt_tokens": record.prompt_tokens or None,
        "cached_tokens": record.cached_tokens or None,
        "completion_tokens": record.completion_tokens or None,
        "ttft_ms": None if record.first_token is None else _milliseconds(record.first_token - record.started),
        "total_ms": _milliseconds(time.monotonic() - record.started),
        "prompt": record.prompt_excerpt,
    }
    shown = {name: value for name, value in fields.items() if value not in (None, "")}
    log.info(" ".join(f"{name}={_text(value)}" for name, value in shown.items()), extra={"fields": shown})


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _text(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)
