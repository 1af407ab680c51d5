"""Prints pagebox(1): the commands as `pagebox --help` has them, files and units."""

from __future__ import annotations

from appliance.cli.main import COMMANDS
from appliance.version import __version__

FILES = (
    (
        "/etc/pagebox/pagebox.yaml",
        "settings of server, engines, NGINX and spot watcher; conf.d/*.yaml are read after it",
    ),
    ("/etc/pagebox/keys.yaml", "API keys, hashed; keys.pepper beside it"),
    ("/etc/pagebox/nginx.conf", "configuration of NGINX, from `pagebox nginx render`"),
    ("/var/lib/pagebox", "models, certificate, state"),
    ("/run/pagebox", "sockets"),
    ("/opt/pagebox", "the program, with its own Python environment"),
)
UNITS = (
    ("pagebox.target", "everything"),
    ("pagebox-server.service", "HTTP; reload reads keys again, stop drains"),
    ("pagebox-engine@N.service", "the engine on GPU N"),
    ("pagebox-gpu-ready.service", "checks the GPUs before engines start"),
    ("pagebox-tls.service", "the certificate; pagebox-tls.timer renews it"),
    ("pagebox-spot-watcher.service", "drains before EC2 takes the machine"),
)


def main() -> None:
    print(f'.TH PAGEBOX 1 "" "pagebox {__version__}" "User Commands"')
    print(".SH NAME\npagebox \\- serve large language models from plain machines")
    print(".SH SYNOPSIS\n.B pagebox\n.I COMMAND\n.RI [ ARGUMENTS ]")
    print(".SH DESCRIPTION\nServes large language models with the API of OpenAI. As a service:")
    print(".B systemctl enable \\-\\-now pagebox.target\n.PP\nfrom a terminal:\n.B pagebox serve\n.I MODEL")
    print(".SH COMMANDS")
    for command in COMMANDS:
        print(f".TP\n.B {escaped(command.name)}\n{escaped(command.help)}")
    print(".PP\n.B pagebox\n.I COMMAND\n.B \\-\\-help\nexplains it,\n.B pagebox config explain\n.I NAME\na setting.")
    print(".SH EXIT STATUS\n0: done; 1: failed; 2: wrong usage, or settings that cannot work.")
    for title, entries in (("FILES", FILES), ("UNITS", UNITS)):
        print(f".SH {title}")
        for name, meaning in entries:
            print(f".TP\n.I {escaped(name)}\n{escaped(meaning)}")
    print(".SH SEE ALSO\n.BR systemctl (1),\n.BR journalctl (1),\n.BR nginx (8)")


def escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    main()
