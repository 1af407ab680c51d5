"""Where keys and their pepper are: a file, SSM Parameter Store, or Secrets Manager."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs

from appliance.keys.errors import KeysError
from appliance.keys.private_files import read_private

SSM, SECRETS_MANAGER = "ssm", "secretsmanager"

FILE_SECONDS = 1.0
AWS_SECONDS = 60.0  # of several processes on hundreds of machines: far below the quota of either service


class Source(Protocol):
    """Something that is read again and again."""

    place: str  # for people
    seconds: float  # after which it is worth looking again

    def read(self) -> bytes:
        """Raises `KeysError`."""
        ...

    def version(self) -> object:
        """Equal as long as `read` would give the same, as far as that is known without reading; None: read it."""
        ...


def open_source(place: str, what: str) -> Source:
    """`place` is a path, `ssm:///name` or `secretsmanager:///name`, with `?region=…` where the machine's is not meant.

    `what` begins the sentences of its errors, for example "The file of API keys". Raises `KeysError`.
    """
    service, separator, rest = place.partition("://")
    if not separator:
        return FileSource(Path(place), what)
    if service not in (SSM, SECRETS_MANAGER):
        raise KeysError(
            f"{what} cannot be {place}: it is a path, {SSM}:///NAME (Parameter Store) or {SECRETS_MANAGER}:///NAME."
        )
    from appliance.keys.aws_sources import ParameterSource, SecretSource

    name, _, query = rest.partition("?")
    options = parse_qs(query, keep_blank_values=True)
    region = options.pop("region", [""])[-1] or None
    if options or not name.strip("/"):
        raise KeysError(f"{what} cannot be {place}: it is {service}:///NAME, and after it at most ?region=REGION.")
    if service == SSM:
        return ParameterSource(place, name, region, what)
    return SecretSource(place, name.removeprefix("/"), region, what)


class FileSource:
    """A file that only its owner and its group may read."""

    seconds = FILE_SECONDS

    def __init__(self, path: Path, what: str) -> None:
        self.place = str(path)
        self._path = path
        self._what = what

    def read(self) -> bytes:
        if not self._path.exists():
            raise KeysError(f"{self._what} {self._path} does not exist; `pagebox keys init` makes it.")
        return read_private(self._path, self._what)

    def version(self) -> object:
        try:
            found = self._path.stat()
        except OSError as error:
            return error.errno
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
