"""A trace as a Markdown page that explains it: what docs/lifecycle.md is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import msgspec

from appliance.cli.trace_explained import AROUND, EVENTS, HOW_TO_REPEAT, INTRODUCTION, READING
from appliance.cli.trace_lines import TraceLines
from appliance.config import Resolved
from appliance.config.catalog import catalog, value_of
from appliance.config.combinations import DEFAULT_ORIGIN
from appliance.config.values import shown
from appliance.protocol.wire import TraceEvent


def page(resolved: Resolved, events: Sequence[TraceEvent], lines: TraceLines, max_tokens: int) -> str:
    """The whole page; `events` begin with the intake, and `lines` has seen none of them."""
    model = _model_name(resolved.settings.model.model)
    intake = msgspec.structs.replace(events[0], fields={**events[0].fields, "model": model})
    told = [(event.event, lines.line(event)) for event in (intake, *events[1:])]
    happened = list(dict.fromkeys(name for name, _ in told))
    words = ["pagebox", "trace", "--markdown", str(events[0].fields["prompt"]), "--model", model]
    words += ["--max-tokens", str(max_tokens), *_given(resolved)]
    parts = [INTRODUCTION, _block([f"$ {shlex.join(words)}"], "console"), HOW_TO_REPEAT]
    parts += ["## The trace\n", READING, _block([line for _, line in told])]
    parts.append("## What happens at each event\n")
    for name in happened:
        parts += [f"### {name}\n", _block([line for event, line in told if event == name][:1]), f"{EVENTS[name]}\n"]
    parts.append("## Events that this request did not meet\n")
    others = [f"* **{name}**: {text}".replace("\n", "\n  ") for name, text in EVENTS.items() if name not in happened]
    parts += [*others, "", AROUND.rstrip("\n")]
    return "\n".join(parts)


def _model_name(model: str) -> str:
    """A folder's name without where it lies, which is of no interest elsewhere."""
    return Path(model).name if Path(model).exists() else model


def _given(resolved: Resolved) -> list[str]:
    """The settings that are not left at their default, as flags; secrets are left out."""
    return [
        f"{setting.flag}={shown(setting, value_of(resolved.settings, setting))}"
        for setting in catalog().values()
        if resolved.provenance[setting.name] != DEFAULT_ORIGIN
        and setting.name != "model"
        and not setting.declaration.secret
    ]


def _block(lines: Sequence[str], language: str = "text") -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])
