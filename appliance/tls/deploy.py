"""Telling NGINX of new files, once it is known to like them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from appliance.tls.errors import TlsError

_SYSTEMD = Path("/run/systemd/system")
_SECONDS = 30
_UNIT = "nginx.service"


def reload_nginx(config: Path, systemd: Path = _SYSTEMD) -> None:
    """Check the configuration, which reads the certificate, then reload. Raises TlsError, with what NGINX said.

    A reload lets the old worker processes finish their streams. An NGINX that does not run is not started.
    `systemd`: there when the machine was booted with it (sd_booted(3)); then it does the reload, and logs it.
    """
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise TlsError("NGINX is not installed, so it cannot be reloaded.")
    _run([program, "-t", "-q", "-c", str(config)], "NGINX refuses the new certificate")
    if not systemd.exists():
        _run([program, "-c", str(config), "-s", "reload"], "NGINX could not be reloaded")
    elif subprocess.run(["systemctl", "is-active", "--quiet", _UNIT], check=False, timeout=_SECONDS).returncode == 0:
        _run(["systemctl", "reload", _UNIT], "NGINX could not be reloaded")


def _run(command: list[str], problem: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TlsError(f"{problem}: {command[0]} took longer than {_SECONDS} s.") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise TlsError(f"{problem}, so what was there before is in use again: {said}")
