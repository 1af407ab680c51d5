"""Serves a model for `make serve`: picks a key, waits until the server is ready, prints how to talk to it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"
NAME = "demo"


def main(model: str, port: int) -> int:
    if not is_free(port):
        return taken(port)
    key = os.environ.get("PAGEBOX_API_KEY") or f"sk-{secrets.token_hex(16)}"
    command = [sys.executable, "-m", "appliance.cli.main", "serve", model]
    command += ["--served-model-name", NAME, "--host", HOST, "--port", str(port)]
    # A key given as a flag could be read by every user with ps.
    server = subprocess.Popen(command, env=os.environ | {"PAGEBOX_API_KEY": key})
    # Ctrl-C reaches the server by itself, as it is in the same process group; this process only waits for its end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while server.poll() is None:
        if is_ready(port):
            print(how_to_talk_to_it(port, key), flush=True)
            break
        time.sleep(0.2)
    code = server.wait()
    return 0 if code in (0, 130, -signal.SIGINT) else 1


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just closed is free
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def taken(port: int) -> int:
    free = next((other for other in range(port + 1, 65536) if is_free(other)), None)
    hint = "" if free is None else f" {free} is free: make serve PORT={free}"
    print(f"Port {port} of {HOST} is taken by another program.{hint}", file=sys.stderr)
    return 1


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def how_to_talk_to_it(port: int, key: str) -> str:
    url = f"http://{HOST}:{port}/v1"
    question = [{"role": "user", "content": "Where does the sun rise?"}]
    body = json.dumps({"model": NAME, "messages": question, "temperature": 0, "max_tokens": 60})
    return f"""
  URL    {url}
  Key    {key}
  Model  {NAME}

Try it from another terminal:

curl {url}/chat/completions -H "Authorization: Bearer {key}" -H "Content-Type: application/json" -d '{body}'

Ctrl-C stops the server.
"""


if __name__ == "__main__":
    if not sys.argv[2].isdecimal():
        sys.exit(f"PORT must be a number, not {sys.argv[2]!r}")
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
