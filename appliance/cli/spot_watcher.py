"""`pagebox spot-watcher`: have the server drain before EC2 takes the machine away, or when a GPU breaks."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine

from appliance.config import add_settings_arguments, resolve

log = logging.getLogger("appliance.aws")

ADMIN_SOCKET = "/run/pagebox/admin.sock"  # where systemd listens for the server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_settings_arguments(parser, model_argument=False)


def run(options: argparse.Namespace) -> int:
    from appliance.aws.spot_watcher import SpotWatcher, state_folder, this_machine
    from appliance.lifecycle.sd_notify import service_manager
    from appliance.log_format import configure_logging

    resolved = resolve(options)
    settings = resolved.settings
    configure_logging(settings.server.log_format)
    for notice in resolved.notices:
        log.warning(notice)
    folder = state_folder(settings.watcher, os.environ)
    watcher = SpotWatcher(settings.watcher, settings.server.admin_socket or ADMIN_SOCKET, this_machine(), folder)
    try:
        asyncio.run(_until_signal(watcher.run(service_manager())))
    except OSError as error:
        print(f"pagebox spot-watcher: {error}.", file=sys.stderr)
        return 1
    return 0


async def _until_signal(work: Coroutine[object, object, None]) -> None:
    task = asyncio.ensure_future(work)
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
