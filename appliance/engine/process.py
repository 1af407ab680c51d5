"""The engine process: `pagebox engine`, or `python -m appliance.engine.process --socket PATH --settings FILE`.

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
from appliance.engine.liveness import Liveness
from appliance.engine.loop import EngineLoop
from appliance.engine.parent import die_with_parent
from appliance.engine.startup import build_core
from appliance.engine.startup_common import OnTrace, ReportPhase
from appliance.engine.startup_errors import SettingsRefused, StartupError
from appliance.engine.warm_up import warm_up
from appliance.lifecycle.sd_notify import ServiceManager, service_manager
from appliance.log_format import configure_logging
from appliance.protocol.wire import EngineReady, Phase, TraceEvent

log = logging.getLogger("appliance.engine")

BuildCore = Callable[[Settings, ReportPhase, OnTrace], tuple[EngineCore, EngineReady]]

# How long systemd waits for the next percent of the weights, and after the last one for the first token: as long as
# TimeoutStartSec of the unit.
LOADING_SECONDS = 300.0


def main(arguments: list[str] | None = None, build: BuildCore = build_core) -> int:
    """Run the engine that a server starts for itself; `build` makes its core. Returns the exit code."""
    options = _parse(arguments)
    if options.parent_pid is not None:
        die_with_parent(options.parent_pid)
    configure_logging("text")  # until the settings say otherwise
    return run_engine(options.socket, lambda: _read(options.settings), build=build)


def run_engine(
    socket_path: Path,
    read_settings: Callable[[], Settings],
    *,
    socket_mode: int = 0o600,
    build: BuildCore = build_core,
) -> int:
    """Run an engine that listens at `socket_path` until SIGTERM, and tell systemd about it if that started it.

    `socket_mode` says who may connect. Returns the exit code.
    """
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _exit_while_starting)
    manager = service_manager()
    try:
        hub = Hub(socket_path, socket_mode)
    except OSError as error:
        log.error("The engine cannot listen at %s: %s", socket_path, error)
        return 1
    try:
        return _run(hub, read_settings, build, manager)
    finally:
        hub.close()


def _run(hub: Hub, read_settings: Callable[[], Settings], build: BuildCore, manager: ServiceManager) -> int:
    traces: list[TraceEvent] = []
    announcer = StartupAnnouncer(hub)

    def report(phase: Phase, detail: str = "", progress: float | None = None) -> None:
        announcer.report(phase, detail, progress)
        manager.status(f"{phase.replace('_', ' ').capitalize()}: {_percent(progress)}{detail}")
        if phase == "loading_weights":
            manager.extend_timeout(LOADING_SECONDS)

    announcer.start()
    try:
        core, ready = _start(read_settings, build, report, traces.append)
    except Exception as error:
        expected = isinstance(error, StartupError)
        reason = str(error) if expected else f"The engine could not start: {type(error).__name__}: {error}"
        report("failed", reason)
        log.error(reason, exc_info=None if expected else error)
        return error.exit_code if isinstance(error, StartupError) else 1
    finally:
        announcer.stop()
    traces.clear()
    loop = EngineLoop(hub, core, ready, traces, Liveness(manager))

    def stop(_signum: int, _frame: FrameType | None) -> None:
        manager.stopping("Stopping: requests that still run end with an error")
        loop.stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)
    log.info("Engine ready after %.1f s: %s", ready.startup_seconds, ready.model)
    manager.ready("Ready, idle")
    return loop.run()


def _start(
    read_settings: Callable[[], Settings], build: BuildCore, report: ReportPhase, on_trace: OnTrace
) -> tuple[EngineCore, EngineReady]:
    """Build the core and decode one real token with it."""
    began = time.monotonic()
    settings = read_settings()
    configure_logging(settings.server.log_format)
    core, ready = build(settings, report, on_trace)
    report("warming_up", "Decoding a first token")
    warm_up(core)
    return core, msgspec.structs.replace(ready, startup_seconds=time.monotonic() - began)


def _read(settings_file: Path) -> Settings:
    try:
        return settings_from_json(settings_file.read_bytes())
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsRefused(f"The settings file {settings_file} cannot be read: {error}") from error


def _percent(progress: float | None) -> str:
    return "" if progress is None else f"{progress:.0%}, "


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
