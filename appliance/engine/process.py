"""The engine process: `python -m appliance.engine.process --socket PATH --settings FILE`.

Exit codes: 0 after SIGTERM, 1 when the start or the engine failed, 2 when the settings cannot work, so that starting
again with them is pointless.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from appliance.config import Settings, settings_from_json
from appliance.engine.announcer import StartupAnnouncer
from appliance.engine.core import EngineCore
from appliance.engine.hub import Hub
from appliance.engine.loop import EngineLoop
from appliance.engine.parent import die_with_parent
from appliance.engine.startup import build_core
from appliance.engine.startup_common import OnTrace, ReportPhase
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.engine.warm_up import warm_up
from appliance.log_format import configure_logging
from appliance.protocol.wire import EngineReady, TraceEvent

log = logging.getLogger("appliance.engine")

BuildCore = Callable[[Settings, ReportPhase, OnTrace], tuple[EngineCore, EngineReady]]


def main(arguments: list[str] | None = None, build: BuildCore = build_core) -> int:
    """Run an engine until SIGTERM; `build` makes its core. Returns the exit code."""
    options = _parse(arguments)
    if options.parent_pid is not None:
        die_with_parent(options.parent_pid)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _exit_while_starting)
    configure_logging("text")  # until the settings say otherwise
    try:
        hub = Hub(options.socket)
    except OSError as error:
        log.error("The engine cannot listen at %s: %s", options.socket, error)
        return 1
    try:
        return _run(hub, options.settings, build)
    finally:
        hub.close()


def _run(hub: Hub, settings_file: Path, build: BuildCore) -> int:
    traces: list[TraceEvent] = []
    announcer = StartupAnnouncer(hub)
    announcer.start()
    try:
        core, ready = _start(settings_file, build, announcer.report, traces.append)
    except Exception as error:
        expected = isinstance(error, StartupError)
        reason = str(error) if expected else f"The engine could not start: {type(error).__name__}: {error}"
        announcer.report("failed", reason)
        log.error(reason, exc_info=None if expected else error)
        return error.exit_code if isinstance(error, StartupError) else 1
    finally:
        announcer.stop()
    traces.clear()
    loop = EngineLoop(hub, core, ready, traces)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda _signum, _frame: loop.stop())
    log.info("Engine ready after %.1f s: %s", ready.startup_seconds, ready.model)
    return loop.run()


def _start(
    settings_file: Path, build: BuildCore, report: ReportPhase, on_trace: OnTrace
) -> tuple[EngineCore, EngineReady]:
    """Build the core and decode one real token with it."""
    began = time.monotonic()
    try:
        settings = settings_from_json(settings_file.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsRefused(f"The settings file {settings_file} cannot be read: {error}") from error
    configure_logging(settings.server.log_format)
    core, ready = build(settings, report, on_trace)
    report("warming_up", "Decoding a first token")
    warm_up(core)
    return core, msgspec.structs.replace(ready, startup_seconds=time.monotonic() - began)


def _exit_while_starting(_signum: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m appliance.engine.process", description="One engine process")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen at")
    parser.add_argument("--settings", type=Path, required=True, help="settings, as JSON")
    parser.add_argument("--parent-pid", type=int, help="end when this process, which must be the parent, ends")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
