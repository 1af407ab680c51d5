"""`pagebox engine`: an engine without a server, for a service manager to run; servers connect to its socket."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from appliance.config import add_settings_arguments, require_model, resolve
from appliance.config.errors import ConfigError
from appliance.loading.errors import ModelFolderMissing
from appliance.loading.source import find_local

log = logging.getLogger("appliance.engine")

# The server is another user, who is in the group of the engine. Others can't enter the folder.
SOCKET_MODE = 0o660


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser)
    parser.add_argument(
        "--socket", type=Path, required=True, help="Unix socket to listen at; `engine-socket` of the server names it"
    )


def run(options: argparse.Namespace) -> int:
    resolved = resolve(options)
    require_model(resolved)
    try:
        find_local(resolved.settings.model.model)
    except ModelFolderMissing as error:
        raise ConfigError(f"{error}.") from error
    from appliance.engine.process import run_engine
    from appliance.log_format import configure_logging

    configure_logging(resolved.settings.server.log_format)
    for notice in resolved.notices:
        log.warning(notice)
    return run_engine(options.socket, lambda: resolved.settings, socket_mode=SOCKET_MODE)
