"""A real NGINX for tests, as the user who runs them, with all its files in one folder."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.front.description import Front, Layout
from appliance.front.local_nginx import local_nginx, nginx_program
from appliance.front.render import render
from appliance.tls.names import local_names
from appliance.tls.pair import made_pair
from appliance.tls.self_signed import new_key, self_signed

# Where `make setup` unpacks Debian's package, which changes nothing else on the machine.
_UNPACKED = Path(sys.prefix, "nginx", "usr", "sbin", "nginx")


def program() -> str | None:
    return nginx_program() or (str(_UNPACKED) if _UNPACKED.exists() else None)


needs_nginx = pytest.mark.skipif(
    program() is None, reason="needs NGINX: `make setup` fetches it where there is apt; or install nginx-light"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def layout_in(folder: Path) -> Layout:
    """With a self-signed certificate, on free ports."""
    key = new_key()
    pair = made_pair(self_signed(key, local_names(), datetime.datetime.now(datetime.UTC)), key)
    certificate, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(pair.chain_pem)
    key_file.write_bytes(pair.key_pem)
    (folder / "acme").mkdir()
    return Layout(
        certificate=certificate,
        certificate_key=key_file,
        acme_folder=folder / "acme",
        log_folder=folder,
        temp_folder=folder,
        pid=folder / "nginx.pid",
        # tests' folders are closed to everybody else, and only root's NGINX may choose who it runs as
        user="root" if os.geteuid() == 0 else None,
        https_port=free_port(),
        http_port=free_port(),
    )


def write_config(front: Front, layout: Layout, folder: Path) -> Path:
    config = folder / "nginx.conf"
    config.write_text(render(front, layout, local_nginx(program())))
    return config


def check_config(config: Path) -> str:
    """What `nginx -t` complains of: nothing, for a good one."""
    path = program()
    assert path is not None
    command = [path, "-t", "-q", "-e", "stderr", "-c", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr or ("" if done.returncode == 0 else f"exit code {done.returncode}")


@dataclass(frozen=True)
class RunningNginx:
    layout: Layout

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.layout.https_port}"

    @property
    def access_log(self) -> Path:
        return self.layout.log_folder / "pagebox-access.log"

    @property
    def error_log(self) -> Path:
        return self.layout.log_folder / "pagebox-error.log"


@asynccontextmanager
async def running_nginx(
    front: Front, folder: Path, layout: Layout | None = None, changes: Sequence[tuple[str, str]] = ()
) -> AsyncIterator[RunningNginx]:
    """`changes`: what is replaced by what in the configuration, for tests of tests."""
    layout = layout or layout_in(folder)
    config = write_config(front, layout, folder)
    for old, new in changes:
        assert old in config.read_text()
        config.write_text(config.read_text().replace(old, new))
    path = program()
    assert path is not None
    process = await asyncio.create_subprocess_exec(
        *(path, "-e", str(folder / "start.log"), "-c", str(config), "-g", "daemon off;"), stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", layout.https_port)).close()
                break
            except OSError:
                assert process.returncode is None, (folder / "start.log").read_text()
                await asyncio.sleep(0.02)
        yield RunningNginx(layout)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
