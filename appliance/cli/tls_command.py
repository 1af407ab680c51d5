"""`pagebox tls ensure | renew | install | show`: the certificate that NGINX uses."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

from appliance.cli.ec2_names import ec2_names
from appliance.config import ConfigError
from appliance.tls.certificates import Done, MachineCertificate
from appliance.tls.deploy import reload_nginx
from appliance.tls.describe import described
from appliance.tls.errors import TlsError
from appliance.tls.names import Names, local_names, parsed_names

FOLDER = Path("/var/lib/pagebox/tls")
NGINX_CONFIG = Path("/etc/pagebox/nginx.conf")
LINEAGE = "RENEWED_LINEAGE"  # where certbot tells its deploy hooks the folder of the new certificate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    ensure = verbs.add_parser(
        "ensure", help="make a self-signed certificate if there is none, renew ours if it is due; for boot and timer"
    )
    renew = verbs.add_parser("renew", help="replace our self-signed certificate now, with a new key")
    for verb in (ensure, renew):
        verb.add_argument(
            "--name",
            nargs="+",
            action="extend",
            default=[],
            metavar="NAME",
            help="further DNS names and addresses of this machine",
        )
    install = verbs.add_parser(
        "install", help="use a certificate of your own; as a deploy hook of certbot it needs no arguments"
    )
    install.add_argument("--certificate", type=Path, metavar="FILE", help="PEM file of the certificate and its chain")
    install.add_argument("--key", type=Path, metavar="FILE", help="PEM file of the private key")
    show = verbs.add_parser("show", help="which certificate is in use")
    show.add_argument("--json", action="store_true", help="print a JSON object")
    for verb, act in ((ensure, _ensure), (renew, _renew), (install, _install), (show, _show)):
        verb.add_argument("--folder", type=Path, default=FOLDER, metavar="DIR", help="default: %(default)s")
        verb.set_defaults(verb=act)
    for verb in (ensure, renew, install):
        verb.add_argument(
            "--reload", action="store_true", help="after a change check NGINX's configuration and reload NGINX"
        )
        verb.add_argument(
            "--nginx-config", type=Path, default=NGINX_CONFIG, metavar="FILE", help="for --reload; default: %(default)s"
        )


def run(options: argparse.Namespace) -> int:
    try:
        return cast(Callable[[argparse.Namespace], int], options.verb)(options)
    except TlsError as error:
        print(f"pagebox tls: {error}", file=sys.stderr)
        return 1


def _ensure(options: argparse.Namespace) -> int:
    return _tell(_certificate(options).ensure(_names(options), _now()))


def _renew(options: argparse.Namespace) -> int:
    return _tell(_certificate(options).renew(_names(options), _now()))


def _install(options: argparse.Namespace) -> int:
    certificate, key = options.certificate, options.key
    lineage = os.environ.get(LINEAGE)
    if certificate is None and key is None and lineage:
        certificate, key = Path(lineage, "fullchain.pem"), Path(lineage, "privkey.pem")
    if certificate is None or key is None:
        raise ConfigError(f"Give --certificate and --key; only certbot's deploy hooks know both by {LINEAGE}.")
    return _tell(_certificate(options).install(certificate, key, _now()))


def _show(options: argparse.Namespace) -> int:
    pair = MachineCertificate(options.folder, lambda: None).read()
    if pair is None:
        print(
            f"pagebox tls: there is no certificate in {options.folder}; `pagebox tls ensure` makes one.",
            file=sys.stderr,
        )
        return 1
    facts = described(pair.certificate, _now())
    if options.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts)) + 1
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):<{width}} {', '.join(value) if isinstance(value, list) else value}")
    return 0


def _certificate(options: argparse.Namespace) -> MachineCertificate:
    def deploy() -> None:
        if options.reload:
            reload_nginx(options.nginx_config)

    return MachineCertificate(options.folder, deploy)


def _names(options: argparse.Namespace) -> Names:
    return local_names() | parsed_names(options.name) | ec2_names()


def _tell(done: Done) -> int:
    print(done.sentence)
    return 0


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
