"""`pagebox drain`: have the server of this machine finish what can finish, and take nothing else."""

from __future__ import annotations

import argparse
import http.client
import json
import re
import socket
import sys
import time
from datetime import datetime
from typing import Any

DEFAULT_SOCKET = "/run/pagebox/admin.sock"
POLL_SECONDS = 0.5
TIMEOUT_SECONDS = 10.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_SECONDS = {"s": 1, "m": 60, "h": 3600, None: 1}


class AdminError(Exception):
    """The text is for people."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--deadline",
        type=_deadline,
        metavar="90s",
        help="when what still runs is ended: seconds (90s, 2m) or a time with its zone (2030-01-31T12:00:00Z); "
        "without it the setting drain-timeout says it",
    )
    what.add_argument("--cancel", action="store_true", help="serve again")
    what.add_argument("--status", action="store_true", help="only say how the server is")
    parser.add_argument("--reason", default="pagebox drain", help="shown in the log and to whoever asks")
    parser.add_argument("--wait", action="store_true", help="return when nothing runs any more")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--admin-socket", default=DEFAULT_SOCKET, metavar="PATH", help=f"of the server; {DEFAULT_SOCKET} by default"
    )


def run(options: argparse.Namespace) -> int:
    try:
        status = _asked(options)
        while options.wait and status["state"] == "draining":
            time.sleep(POLL_SECONDS)
            status = _ask(options.admin_socket, "GET")
    except AdminError as error:
        print(f"pagebox drain: {error}", file=sys.stderr)
        return 1
    print(json.dumps(status) if options.json else _sentence(status))
    return 0


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    if options.status:
        return _ask(options.admin_socket, "GET")
    if options.cancel:
        return _ask(options.admin_socket, "DELETE")
    return _ask(options.admin_socket, "POST", {"deadline": options.deadline, "reason": options.reason})


def _deadline(text: str) -> float | str:
    """Seconds from now, or a time."""
    if match := _DURATION.fullmatch(text):
        return float(match[1]) * _SECONDS[match[2]]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 90s nor like 2030-01-31T12:00:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone; add Z for UTC")
    return moment.isoformat()


def _ask(path: str, method: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Raises `AdminError`."""
    connection = _UnixConnection(path)
    try:
        connection.request(method, "/admin/drain", None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    except FileNotFoundError:
        raise AdminError(f"no server has its admin socket at {path}; --admin-socket says where it is") from None
    except PermissionError:
        raise AdminError(f"you may not open {path}: be root, or in its group") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AdminError(f"the server does not answer at {path}: {error}") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise AdminError(answer["error"]["message"])
    return answer


def _sentence(status: dict[str, Any]) -> str:
    match status["state"]:
        case "serving":
            return "Serving."
        case "draining":
            return f"Draining, {status['seconds_left']:.0f} s at most ({status['reason']})."
    return f"Drained ({status['reason']})."


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("pagebox", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
