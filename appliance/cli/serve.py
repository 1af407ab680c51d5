"""`pagebox serve MODEL`: the HTTP server, with an engine process of its own."""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys

from appliance.config import Settings, add_settings_arguments, require_model, resolve
from appliance.config.errors import ConfigError
from appliance.loading.errors import ModelFolderMissing
from appliance.loading.source import find_local

log = logging.getLogger("appliance.server")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser)


def run(options: argparse.Namespace) -> int:
    resolved = resolve(options)
    require_model(resolved)
    try:
        find_local(resolved.settings.model.model)
    except ModelFolderMissing as error:
        raise ConfigError(f"{error}.") from error
    import uvloop

    from appliance.keys.errors import KeysError
    from appliance.log_format import configure_logging
    from appliance.server.serve import serve

    configure_logging(resolved.settings.server.log_format)
    for notice in resolved.notices:
        log.warning(notice)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(resolved.settings))
    except KeysError as error:
        print(f"pagebox serve: {error}", file=sys.stderr)
        return 1
    except (OSError, ssl.SSLError) as error:
        print(f"pagebox serve: cannot listen on {_address(resolved.settings)}: {error}.", file=sys.stderr)
        return 1
    return 0


def _address(settings: Settings) -> str:
    return settings.server.uds or f"{settings.server.host}:{settings.server.port}"
