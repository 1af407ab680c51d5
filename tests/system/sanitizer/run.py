"""Run the kernels' tests under compute-sanitizer: out-of-bounds access, races, uninitialized reads, wrong barriers.

    python3 tests/system/sanitizer/run.py [--tools memcheck racecheck] [-k EXPRESSION] [--output DIRECTORY]

Needs an NVIDIA GPU, and compute-sanitizer of the CUDA toolkit on the PATH or in CUDA_HOME. The tools run at the same
time, after a run without any that compiles the kernels. Exit status 0 if all tests pass and no tool found anything.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND = 86  # exit status of a tool that found something, which pytest never has


def main() -> int:
    arguments = parse()
    sanitizer = find_sanitizer()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for tool in TOOLS:
        (arguments.output / f"{tool}.log").unlink(missing_ok=True)
    tests = [sys.executable, "-m", "pytest", *selection(arguments.expression)]

    begun = time.monotonic()
    plain = run(tests, arguments.output / "plain.tests.log", arguments.time_limit).wait()
    print(f"without a tool: exit status {plain} after {time.monotonic() - begun:.0f} s", flush=True)
    if plain:
        print((arguments.output / "plain.tests.log").read_text()[-3000:])
        return 1

    begun = time.monotonic()
    running = {
        tool: run([*under(sanitizer, tool, arguments.output), *tests], tests_log(arguments.output, tool))
        for tool in arguments.tools
    }
    clean = True
    for tool, process in running.items():
        try:
            status = process.wait(max(0.0, begun + arguments.time_limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        log = arguments.output / f"{tool}.log"
        found = log.read_text() if log.exists() else ""
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", found)
        passed = status == 0 and bool(summary) and not any(re.search(r"[1-9]", line) for line in summary)
        clean = clean and passed
        verdict = "clean" if passed else "NOT CLEAN"
        print(f"{tool}: {verdict}, exit status {status}, {'; '.join(summary) or 'no summary'}", flush=True)
        if not passed:
            print(found[:3000])
            print(tests_log(arguments.output, tool).read_text()[-1500:])
    print(f"the tools took {time.monotonic() - begun:.0f} s; logs are in {arguments.output}")
    return 0 if clean else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run the kernels' tests under compute-sanitizer.")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("-k", dest="expression", default="", help="pytest's expression that selects tests")
    parser.add_argument("--time-limit", type=float, default=900.0, help="seconds, for all tools together")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "sanitizer", help="for the logs")
    return parser.parse_args()


def find_sanitizer() -> str:
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = os.pathsep.join([os.environ.get("PATH", ""), f"{toolkit}/bin", f"{toolkit}/compute-sanitizer"])
    found = shutil.which("compute-sanitizer", path=places)
    if found is None:
        sys.exit(f"compute-sanitizer is neither on the PATH nor in {toolkit}/bin: install the CUDA toolkit")
    return found


def selection(expression: str) -> list[str]:
    """pytest's arguments: the small tests of every kernel, and one launch of each with the card's own tiles."""
    files = [str(file) for file in sorted((ROOT / "tests/unit/kernels").glob("test_*.py")) if on_device(file)]
    chosen = ["-k", expression] if expression else []
    return ["-p", "tests.system.sanitizer.every_kernel", *chosen, *files, str(Path(__file__).parent)]


def on_device(file: Path) -> bool:
    return "triton_device import" in file.read_text(encoding="utf-8")


def under(sanitizer: str, tool: str, output: Path) -> list[str]:
    return [
        *(sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), "--log-file", str(output / f"{tool}.log")),
        *("--print-limit", "50", "--target-processes", "application-only"),
    ]


def tests_log(output: Path, tool: str) -> Path:
    return output / f"{tool}.tests.log"


def run(command: list[str], log: Path, time_limit: float | None = None) -> subprocess.Popen[bytes]:
    """Start it. Every tensor gets an allocation of its own, so that what lies beyond its end belongs to nobody."""
    if time_limit is not None:
        command = ["timeout", str(time_limit), *command]
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


if __name__ == "__main__":
    sys.exit(main())
