"""The folder with the certificate that NGINX uses: changed in one step, or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from appliance.tls.errors import TlsError
from appliance.tls.pair import Pair, read_pair

CERTIFICATE = "fullchain.pem"  # the names that ACME clients give them
KEY = "privkey.pem"
_KEPT_VERSIONS = 2


class CertificateStore:
    """`live` is a symbolic link to one of `versions/*`, which hold a certificate and its key each.

    NGINX reads two files; replacing one after the other would leave a moment in which they do not match, and a crash
    would make it last. Replacing the link is one step for both. Whoever installs a certificate by hand may also replace
    the link by one to another folder, or by a folder.
    """

    def __init__(self, folder: Path) -> None:
        self.live = folder / "live"
        self._versions = folder / "versions"

    def read(self) -> Pair | None:
        """What is in use; None when there is nothing yet. Raises TlsError when there is something that is no pair."""
        certificate, key = self.live / CERTIFICATE, self.live / KEY
        if not os.path.lexists(self.live) or (self.live.is_dir() and not any(self.live.iterdir())):
            return None
        return read_pair(certificate, key)

    @contextlib.contextmanager
    def replacing(self, pair: Pair) -> Iterator[None]:
        """Put `pair` into use; when the block raises, what was there before is in use again.

        The folder must belong to whoever runs this. Raises TlsError.
        """
        try:
            version = self._write(pair)
            before = str(self.live.readlink()) if self.live.is_symlink() else None
            self._switch(version)
        except OSError as error:
            raise TlsError(f"{error.filename} cannot be written: {error.strerror}.") from error
        try:
            yield
        except BaseException:
            if before is None:
                self.live.unlink()
            else:
                self._link(before)
            shutil.rmtree(version)
            raise
        self._forget_old(version)

    def _write(self, pair: Pair) -> Path:
        """A new version, complete on the disk before anything leads to it."""
        if self.live.is_dir() and not self.live.is_symlink():
            if any(self.live.iterdir()):
                raise TlsError(
                    f"{self.live} is a folder of somebody's own; move its files away, or keep what is in it."
                )
            self.live.rmdir()
        self._versions.mkdir(mode=0o755, parents=True, exist_ok=True)
        version = self._versions / f"{self._next_number():06d}-{secrets.token_hex(4)}"
        version.mkdir(mode=0o755)
        _write_file(version / CERTIFICATE, pair.chain_pem, 0o644)
        _write_file(version / KEY, pair.key_pem, 0o600)
        _sync_folder(version)
        return version

    def _next_number(self) -> int:
        numbers = [path.name.partition("-")[0] for path in self._versions.iterdir()]
        return 1 + max((int(number) for number in numbers if number.isdigit()), default=0)

    def _switch(self, version: Path) -> None:
        self._link(os.path.relpath(version, self.live.parent))

    def _link(self, target: str) -> None:
        temporary = self.live.with_name(f".live-{secrets.token_hex(4)}")
        temporary.symlink_to(target)
        temporary.replace(self.live)
        _sync_folder(self.live.parent)

    def _forget_old(self, live: Path) -> None:
        """The one before is kept, for whoever wants it back."""
        for old in sorted(self._versions.iterdir())[:-_KEPT_VERSIONS]:
            if old != live:
                shutil.rmtree(old, ignore_errors=True)


def _write_file(path: Path, content: bytes, mode: int) -> None:
    """Created with its final mode: a key is never readable by others, not even for a moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
