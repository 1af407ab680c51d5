"""Which certificate the machine should have now."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.tls.errors import TlsError
from appliance.tls.names import Names
from appliance.tls.pair import Pair, made_pair, read_pair
from appliance.tls.self_signed import RENEW_BEFORE, is_ours, names_of, new_key, self_signed
from appliance.tls.store import CertificateStore

_MACHINE_ID = Path("/etc/machine-id")
_OWNER = "machine"


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, as a sentence; `changed`: NGINX was told of a new certificate."""

    changed: bool
    sentence: str


class MachineCertificate:
    """The certificate of this machine. What somebody else installed is never replaced but by `install`.

    `deploy` is called when new files are in place, and raises TlsError to have the old ones back.
    """

    def __init__(self, folder: Path, deploy: Callable[[], None], machine_id: Path = _MACHINE_ID) -> None:
        self._store = CertificateStore(folder)
        self._deploy = deploy
        self._owner = folder / _OWNER
        self._machine = _digest_of(machine_id)

    def ensure(self, names: Names, now: datetime.datetime) -> Done:
        """Make a certificate if there is none, or renew ours if it is due, for other names, or another machine's.

        The last is the case after an image was made of a running machine: its key is then in many hands. Raises
        TlsError when what is there cannot be used: it is somebody's, and left alone.
        """
        current = self._store.read()
        if current is None:
            return self._issue(new_key(), names, now, "Made a self-signed certificate, as there was none")
        if not is_ours(current.certificate):
            return Done(False, _foreign(current, now))
        reason = self._why_renew(current, names, now)
        if reason is None:
            until = current.certificate.not_valid_after_utc
            return Done(False, f"The self-signed certificate is valid until {until:%Y-%m-%d}, and names this machine.")
        return self._issue(self._key_to_keep(current), names, now, f"Renewed the self-signed certificate: {reason}")

    def renew(self, names: Names, now: datetime.datetime) -> Done:
        """As `ensure`, but ours is replaced in any case, with a new key."""
        current = self._store.read()
        if current is not None and not is_ours(current.certificate):
            return Done(False, _foreign(current, now))
        return self._issue(new_key(), names, now, "Made a new self-signed certificate with a new key")

    def install(self, certificate: Path, key: Path, now: datetime.datetime) -> Done:
        """Put a pair of somebody else's into use, as an ACME client's deploy hook does. Raises TlsError."""
        pair = read_pair(certificate, key)
        until = pair.certificate.not_valid_after_utc
        if until <= now:
            raise TlsError(f"The certificate in {certificate} expired on {until:%Y-%m-%d}; nothing was changed.")
        with self._store.replacing(pair):
            self._deploy()
        return Done(True, f"Installed the certificate for {names_of(pair.certificate)}, valid until {until:%Y-%m-%d}.")

    def read(self) -> Pair | None:
        return self._store.read()

    def _issue(self, key: ec.EllipticCurvePrivateKey, names: Names, now: datetime.datetime, what: str) -> Done:
        certificate = self_signed(key, names, now)
        with self._store.replacing(made_pair(certificate, key)):
            self._deploy()
        with contextlib.suppress(OSError):  # known by its absence: the next time makes a new key
            self._owner.write_text(self._machine, encoding="ascii")
        return Done(True, f"{what}. It names {names}, until {certificate.not_valid_after_utc:%Y-%m-%d}.")

    def _why_renew(self, current: Pair, names: Names, now: datetime.datetime) -> str | None:
        certificate = current.certificate
        if not self._is_this_machines():
            return "it was made on another machine, so its key is not this one's alone"
        if certificate.not_valid_before_utc > now:
            return "it was not valid yet, so this machine's clock was wrong when it was made"
        if certificate.not_valid_after_utc - now < RENEW_BEFORE:
            return f"it was valid until {certificate.not_valid_after_utc:%Y-%m-%d}"
        if not names <= names_of(certificate):
            return "this machine has other names or addresses now"
        return None

    def _key_to_keep(self, current: Pair) -> ec.EllipticCurvePrivateKey:
        """The same key while it is the machine's own, so that clients that know its public key still do."""
        if self._is_this_machines() and isinstance(current.key, ec.EllipticCurvePrivateKey):
            return current.key
        return new_key()

    def _is_this_machines(self) -> bool:
        try:
            return self._owner.read_text(encoding="ascii") == self._machine
        except (OSError, UnicodeDecodeError):
            return False


def _foreign(current: Pair, now: datetime.datetime) -> str:
    until = current.certificate.not_valid_after_utc
    when = f"it expired on {until:%Y-%m-%d}; install a new one" if until <= now else f"valid until {until:%Y-%m-%d}"
    return f"The certificate in use was installed by somebody and is left alone: {when}."


def _digest_of(machine_id: Path) -> str:
    """A digest, as the id itself is not for anybody to keep (machine-id(5)). Without one all machines are the same."""
    try:
        content = machine_id.read_bytes()
    except OSError:
        content = b""
    return hashlib.sha256(b"pagebox certificate\0" + content.strip()).hexdigest()
