"""The configuration: whether it can work, and who may use what it opens."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

from appliance.config import ConfigError, Settings, resolve_file
from appliance.doctor.finding import Finding, ok, problem, warning
from appliance.doctor.machine import Machine
from appliance.keys.errors import KeysError
from appliance.keys.private_files import read_private
from appliance.tls.errors import TlsError
from appliance.tls.store import CertificateStore

CONFIG = "configuration"
TLS_FOLDER = "/var/lib/pagebox/tls"
NGINX_CONFIG = "/etc/pagebox/nginx.conf"
SOON = datetime.timedelta(days=14)


def read_settings(file: Path) -> tuple[Settings | None, list[Finding]]:
    if not file.exists():
        return None, [
            warning(CONFIG, f"{file} does not exist", "write one, see docs/configuration.md, or name it with --config")
        ]
    try:
        settings = resolve_file(file).settings
    except ConfigError as error:
        return None, [
            problem(CONFIG, str(error), f"correct {file}; `pagebox config explain NAME` tells about a setting")
        ]
    return settings, [ok(CONFIG, f"{file} is valid")]


def model(machine: Machine, settings: Settings) -> Iterator[Finding]:
    named = settings.model.model
    if not named:
        yield problem(
            "model", "no model is named", "set `model:` to a folder, for example /var/lib/pagebox/models/NAME"
        )
    elif not named.startswith("/"):
        yield warning(
            "model",
            f"{named} is not a folder: the engine's unit has no network to fetch it",
            "`pagebox model pull` it, and name the folder",
        )
    elif not machine.path(named).is_dir():
        yield problem("model", f"the folder {named} does not exist", "`pagebox model pull`, or copy the model there")
    else:
        closed = [parent for parent in (machine.path(named), *machine.path(named).parents) if not _open(parent)]
        if closed:
            yield problem(
                "model", f"other users cannot read {closed[-1]}", f"`chmod o+rx {closed[-1]}`: engines are not root"
            )
        else:
            yield ok("model", f"{named} is there")


def access(machine: Machine, settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if not server.has_keys:
        where = server.uds or f"{server.host}:{server.port}"
        yield problem(
            "api keys",
            f"no API keys are configured: whoever reaches {where}, through NGINX too, may use the model",
            "set `api_keys_file: /etc/pagebox/keys.yaml`, and `pagebox keys init`, `pagebox keys add NAME`",
        )
    elif server.api_keys_file is not None and "://" not in server.api_keys_file:
        try:
            read_private(machine.path(server.api_keys_file), "The file of keys")
        except KeysError as error:
            yield problem("api keys", str(error), "`pagebox keys init` makes one; run this as root to read it")
        else:
            yield ok("api keys", f"{server.api_keys_file} is private")
    if server.max_log_len:
        yield warning(
            "logs", f"the first {server.max_log_len} characters of prompts are logged", "set max-log-len to 0"
        )


def certificate(machine: Machine, now: datetime.datetime) -> Iterator[Finding]:
    if not machine.has(TLS_FOLDER):
        return
    try:
        pair = CertificateStore(machine.path(TLS_FOLDER)).read()
    except (TlsError, OSError) as error:
        yield problem("certificate", f"{error}", "`pagebox tls renew`, or `pagebox tls install` with one of your own")
        return
    if pair is None:
        yield problem("certificate", "there is none, and NGINX refuses to start", "`systemctl start pagebox-tls`")
        return
    end = pair.certificate.not_valid_after_utc
    if end < now + SOON:
        yield problem("certificate", f"it ends at {end:%Y-%m-%d}", "`pagebox tls renew`, or see to certbot's timer")
    else:
        yield ok("certificate", f"valid until {end:%Y-%m-%d}")


def front(machine: Machine, settings: Settings) -> Iterator[Finding]:
    text = machine.text(NGINX_CONFIG)
    if text is None:
        return
    if settings.server.uds is not None and f"unix:{settings.server.uds}" not in text:
        yield problem(
            "nginx",
            f"{NGINX_CONFIG} does not lead to {settings.server.uds}",
            f"`pagebox nginx render --config /etc/pagebox/pagebox.yaml > {NGINX_CONFIG}`, then reload NGINX",
        )
    done = machine.run(["nginx", "-t", "-q", "-c", str(machine.path(NGINX_CONFIG))])
    if done is not None and done.code:
        yield problem("nginx", " ".join(done.output.split()), f"render {NGINX_CONFIG} again, as its first lines say")
    elif done is not None:
        yield ok("nginx", f"{NGINX_CONFIG} is valid")


def _open(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o005 == 0o005)
