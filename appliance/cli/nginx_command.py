"""`pagebox nginx render`: the configuration of the NGINX in front, out of the settings."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from appliance.config import ConfigError, Settings, add_settings_arguments, resolve
from appliance.front.description import DEFAULT_KEY_RATE, Front, Layout, balancer_front, machine_front
from appliance.front.local_nginx import local_nginx, nginx_program
from appliance.front.render import render

_DEFAULT = Layout()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    front = parser.add_argument_group("the front")
    front.add_argument(
        "--kind",
        choices=("machine", "balancer"),
        default="machine",
        help="machine: in front of the server of this machine; balancer: in front of several machines",
    )
    front.add_argument(
        "--upstream",
        nargs="+",
        action="extend",
        default=[],
        metavar="URL",
        help="balancer: the machines, http://HOST:PORT or https://HOST:PORT",
    )
    front.add_argument(
        "--upstream-ca",
        type=Path,
        metavar="FILE",
        help="balancer: PEM file of the certificates that https:// machines are known by",
    )
    front.add_argument(
        "--affinity-header",
        metavar="NAME",
        help="balancer: requests with the same value of this header go to the same machine, which has their prefix in "
        "its cache, for example X-Session-Id; default: to the machine with the fewest requests",
    )
    front.add_argument(
        "--trusted-proxy",
        nargs="+",
        action="extend",
        default=[],
        metavar="NETWORK",
        help="networks of load balancers in front, whose X-Forwarded-For is believed",
    )
    front.add_argument(
        "--key-rate",
        type=int,
        default=DEFAULT_KEY_RATE,
        metavar="N",
        help="requests a second that one key may send on average before NGINX refuses; default: %(default)s",
    )
    front.add_argument("--https-port", type=int, default=_DEFAULT.https_port, help="default: %(default)s")
    front.add_argument("--http-port", type=int, default=_DEFAULT.http_port, help="default: %(default)s")
    front.add_argument(
        "--certificate", type=Path, default=_DEFAULT.certificate, metavar="FILE", help="default: %(default)s"
    )
    front.add_argument(
        "--certificate-key", type=Path, default=_DEFAULT.certificate_key, metavar="FILE", help="default: %(default)s"
    )
    front.add_argument(
        "--output", type=Path, metavar="FILE", help="write this file, whole or not at all; default: standard output"
    )
    add_settings_arguments(parser, model_argument=False)


def run(options: argparse.Namespace) -> int:
    resolved = resolve(options)
    for notice in resolved.notices:
        print(notice, file=sys.stderr)
    layout = Layout(
        certificate=options.certificate.absolute(),
        certificate_key=options.certificate_key.absolute(),
        https_port=options.https_port,
        http_port=options.http_port,
    )
    text = render(_front(resolved.settings, options), layout, local_nginx(nginx_program()))
    if options.output is None:
        print(text, end="")
        return 0
    try:
        _write(options.output, text)
    except OSError as error:
        print(f"pagebox nginx render: cannot write {options.output}: {error.strerror}.", file=sys.stderr)
        return 1
    return 0


def _front(settings: Settings, options: argparse.Namespace) -> Front:
    if options.kind == "balancer":
        return balancer_front(
            settings,
            options.upstream,
            affinity_header=options.affinity_header,
            upstream_ca=options.upstream_ca.absolute() if options.upstream_ca else None,
            key_rate=options.key_rate,
            trusted_proxies=options.trusted_proxy,
        )
    for flag in ("upstream", "upstream_ca", "affinity_header"):
        if getattr(options, flag):
            raise ConfigError(f"--{flag.replace('_', '-')} is for --kind balancer.")
    return machine_front(settings, key_rate=options.key_rate, trusted_proxies=options.trusted_proxy)


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
