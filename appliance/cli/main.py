"""The command `pagebox`: finds the subcommand, imports it alone, runs it.

A subcommand is a module with two functions: `add_arguments(parser)` and `run(options) -> int`, the exit code (0 done,
1 failed, 2 wrong usage). To add one, write the module and its line in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from appliance.version import __version__


@dataclass(frozen=True)
class Command:
    """`name` may have two words (`bench serve`); `module` is imported only when the command is chosen."""

    name: str
    help: str
    module: str


COMMANDS = (
    Command("bench serve", "measure a running server: latencies, throughput, errors", "appliance.cli.bench_serve"),
    Command("bench throughput", "measure the engine alone, without a server", "appliance.cli.bench_throughput"),
    Command("config", "show, explain and check settings", "appliance.cli.config_command"),
    Command("drain", "finish what can finish, and take nothing else", "appliance.cli.drain"),
    Command("doctor", "look for what is wrong with this machine, and how to mend it", "appliance.cli.doctor"),
    Command("engine", "run an engine without a server, for systemd", "appliance.cli.engine"),
    Command("keys", "make, list, revoke and rotate API keys", "appliance.cli.keys"),
    Command("model inspect", "show what a model is and what it costs", "appliance.cli.model_inspect"),
    Command("model pull", "fetch a model into a local folder", "appliance.cli.model_pull"),
    Command("nginx render", "print the configuration of the NGINX in front", "appliance.cli.nginx_command"),
    Command("plan", "show whether a model fits a GPU, without one", "appliance.cli.plan"),
    Command("serve", "serve a model over HTTP", "appliance.cli.serve"),
    Command("tls", "make, renew and install the certificate that NGINX uses", "appliance.cli.tls_command"),
    Command("spot-watcher", "drain before EC2 takes the machine, or when a GPU breaks", "appliance.cli.spot_watcher"),
    Command("trace", "show the life of one request, step by step", "appliance.cli.trace"),
    Command("version", "print the version", "appliance.cli.version_command"),
)


class CommandModule(Protocol):
    """What the module of a subcommand offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, options: argparse.Namespace) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, sys.argv's by default. Returns the exit code; argparse's own exits raise SystemExit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"pagebox {__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview(COMMANDS), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    command = _find(words)
    if command is None:
        return _not_a_command(words)
    return _run(command, words[len(command.name.split()) :])


def _find(words: Sequence[str]) -> Command | None:
    by_name = {command.name: command for command in COMMANDS}
    return by_name.get(" ".join(words[:2])) or by_name.get(words[0])


def _run(command: Command, words: Sequence[str]) -> int:
    from appliance.cli.parser import Parser
    from appliance.config.errors import ConfigError

    module = cast(CommandModule, importlib.import_module(command.module))
    parser = Parser(prog=f"pagebox {command.name}", description=command.help[0].upper() + command.help[1:] + ".")
    module.add_arguments(parser)
    try:
        return module.run(parser.parse_args(words))
    except ConfigError as error:
        print(f"pagebox {command.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _not_a_command(words: Sequence[str]) -> int:
    from appliance.config.errors import suggestion

    family = [command for command in COMMANDS if command.name.split()[0] == words[0]]
    if family:
        asked = words[1:2] in (["-h"], ["--help"])
        print(_overview(family), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    near = suggestion(words[0], {command.name.split()[0] for command in COMMANDS})
    print(f"pagebox: unknown command {words[0]}{near} `pagebox --help` lists all.", file=sys.stderr)
    return 2


def _overview(commands: Sequence[Command]) -> str:
    width = max(len(command.name) for command in commands) + 2
    lines = [f"  {command.name:<{width}}{command.help}" for command in commands]
    return "\n".join(
        [
            "usage: pagebox COMMAND [ARGUMENTS]",
            "",
            "Serve large language models from plain machines.",
            "",
            *lines,
            "",
            "`pagebox COMMAND --help` explains a command, `pagebox config explain NAME` a setting.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
