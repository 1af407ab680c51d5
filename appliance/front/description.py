"""What an NGINX in front has to know, worked out from the settings."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from appliance.config import ConfigError, Settings
from appliance.tls.names import INTERNAL_NAME

DEFAULT_KEY_RATE = 200

Kind = Literal["machine", "balancer"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where NGINX keeps and finds its files, and where it listens. `user` None: NGINX is not started by root."""

    certificate: Path = Path("/var/lib/pagebox/tls/live/fullchain.pem")
    certificate_key: Path = Path("/var/lib/pagebox/tls/live/privkey.pem")
    acme_folder: Path = Path("/var/lib/pagebox/acme")
    log_folder: Path = Path("/var/log/nginx")  # *.log in it is rotated by Debian's package
    temp_folder: Path = Path("/run")
    pid: Path = Path("/run/nginx.pid")  # Debian's unit looks there
    user: str | None = "www-data"
    https_port: int = 443
    http_port: int = 80


@dataclass(frozen=True, slots=True)
class Limits:
    """`longest_seconds` is how long one request may take, 0: no limit; so is `concurrency`, requests at once."""

    body_bytes: int
    longest_seconds: int
    concurrency: int


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where a server process, or a machine's own NGINX, listens; `address` as NGINX's directive `server` takes it."""

    scheme: Literal["http", "https"]
    address: str


@dataclass(frozen=True, slots=True)
class Front:
    """Everything that a template is rendered from, but files and ports (`Layout`)."""

    kind: Kind
    upstreams: tuple[Upstream, ...]
    limits: Limits
    prefixes: tuple[str, ...] = ("",)  # paths that the API stands under
    key_rate: int = DEFAULT_KEY_RATE  # requests a second of one key, on average
    affinity_header: str | None = None
    upstream_ca: Path | None = None
    upstream_name: str = INTERNAL_NAME
    trusted_proxies: tuple[str, ...] = ()

    @property
    def burst(self) -> int:
        """Requests of one key that may come at once: as many as the server process could run and queue."""
        return max(self.key_rate, self.limits.concurrency)


def machine_front(
    settings: Settings, *, key_rate: int = DEFAULT_KEY_RATE, trusted_proxies: Sequence[str] = ()
) -> Front:
    """In front of the server process that runs with these settings on the same machine. Raises ConfigError.

    The server process itself may listen at a Unix socket without keys; what NGINX opens to everybody may not.
    """
    if not settings.server.has_keys and not settings.server.allow_unauthenticated:
        raise ConfigError(
            "NGINX would open a server without API keys to everybody: set api-keys-file (`pagebox keys add` makes one) "
            "or allow-unauthenticated if that is meant."
        )
    return Front(
        kind="machine",
        upstreams=(_own_server(settings),),
        limits=_limits(settings),
        prefixes=_prefixes(settings),
        key_rate=_positive(key_rate),
        trusted_proxies=_networks(trusted_proxies),
    )


def balancer_front(
    settings: Settings,
    upstreams: Sequence[str],
    *,
    affinity_header: str | None = None,
    upstream_ca: Path | None = None,
    key_rate: int = DEFAULT_KEY_RATE,
    trusted_proxies: Sequence[str] = (),
) -> Front:
    """In front of machines that all run with these settings; `upstreams` are their URLs. Raises ConfigError.

    `affinity_header`: requests with the same value of it go to the same machine; None: to the one with the fewest.
    `upstream_ca`: PEM file of the certificates that https:// machines are known by.
    """
    if not upstreams:
        raise ConfigError("A balancer needs machines: --upstream http://HOST:PORT or https://HOST:PORT for each.")
    found = tuple(dict.fromkeys(_machine(url) for url in upstreams))
    schemes = {upstream.scheme for upstream in found}
    if len(schemes) > 1:
        raise ConfigError("The machines behind a balancer must all be http:// or all be https://.")
    if "https" in schemes and upstream_ca is None:
        raise ConfigError(
            "https:// machines need --upstream-ca, a PEM file of the certificates that they are known by: encryption "
            "without checking them would hand every key to whoever answers."
        )
    if "http" in schemes and upstream_ca is not None:
        raise ConfigError("--upstream-ca is for https:// machines.")
    if affinity_header is not None and not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", affinity_header):
        raise ConfigError(f"{affinity_header!r} is not the name of a header, such as X-Session-Id.")
    return Front(
        kind="balancer",
        upstreams=found,
        limits=_limits(settings),
        prefixes=_prefixes(settings),
        key_rate=_positive(key_rate),
        affinity_header=affinity_header,
        upstream_ca=upstream_ca,
        trusted_proxies=_networks(trusted_proxies),
    )


def _own_server(settings: Settings) -> Upstream:
    server = settings.server
    if server.ssl_certfile is not None:
        raise ConfigError("NGINX brings TLS, so the server process must not: leave ssl-certfile and ssl-keyfile out.")
    if server.uds is not None:
        return Upstream("http", f"unix:{Path(server.uds).absolute()}")
    if server.port == 0:
        raise ConfigError("NGINX has to know where the server listens: set uds, or a port other than 0.")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    return Upstream("http", f"{_bracketed(host)}:{server.port}")


def _machine(url: str) -> Upstream:
    problem = ConfigError(f"{url!r} is not a machine's URL, http://HOST:PORT or https://HOST:PORT.")
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        raise problem from None
    host = parts.hostname
    bare = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
    if parts.scheme not in ("http", "https") or not host or not bare or not re.fullmatch(r"[\w.:-]+", host, re.ASCII):
        raise problem
    if parts.scheme == "https":
        return Upstream("https", f"{_bracketed(host)}:{port or 443}")
    return Upstream("http", f"{_bracketed(host)}:{port or 80}")


def _limits(settings: Settings) -> Limits:
    running, queued = settings.scheduling.max_num_seqs, settings.scheduling.max_num_queued_reqs
    return Limits(
        body_bytes=settings.server.max_request_bytes,
        longest_seconds=math.ceil(settings.server.request_timeout),
        concurrency=running + queued if queued else 0,
    )


def _prefixes(settings: Settings) -> tuple[str, ...]:
    return ("", settings.server.root_path) if settings.server.root_path else ("",)


def _positive(key_rate: int) -> int:
    if key_rate < 1:
        raise ConfigError(f"--key-rate must be at least 1 request a second, not {key_rate}.")
    return key_rate


def _networks(texts: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(text)) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--trusted-proxy takes addresses and networks, such as 10.0.0.0/16: {error}.") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
