"""The configuration file as text."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import jinja2

from appliance.config import ConfigError
from appliance.front.description import Front, Layout
from appliance.front.error_pages import HTTPS_ONLY, error_body, error_pages
from appliance.front.local_nginx import LocalNginx

TEMPLATES = "appliance_nginx"
# Keys of one organisation that may come from the same address at full speed.
ADDRESS_FACTOR = 4


def render(front: Front, layout: Layout, nginx: LocalNginx) -> str:
    """A whole nginx.conf, from `user` to the last brace. Raises ConfigError for what cannot be written in one."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # not HTML; the filters below quote for NGINX
    )
    environment.filters |= {"quoted": _quoted, "single_quoted": _single_quoted}
    return environment.get_template(f"{front.kind}.conf.j2").render(
        front=front,
        layout=layout,
        nginx=nginx,
        address_factor=ADDRESS_FACTOR,
        error_pages=error_pages(front.limits.body_bytes),
        https_only=error_body(403, HTTPS_ONLY, "https_only"),
    )


def _source(name: str) -> str:
    return (files(TEMPLATES) / name).read_text(encoding="utf-8")


def _quoted(value: str | Path) -> str:
    """As one word between double quotes. NGINX has no escape for a dollar, which begins a variable."""
    text = str(value)
    if "$" in text or not text.isprintable():
        raise ConfigError(f"{text!r} cannot stand in NGINX's configuration; use a name without such characters.")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _single_quoted(text: str) -> str:
    assert not set(text) & {"'", "$", "\\"}, text  # of our own making
    return f"'{text}'"
