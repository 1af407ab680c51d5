"""What the NGINX of this machine understands, as the same line is right for one version and an error for another."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
_CURVES = ("X25519", "prime256v1", "secp384r1")


@dataclass(frozen=True, slots=True)
class LocalNginx:
    """An NGINX and its machine. The defaults are the oldest that is supported: Debian 12's."""

    version: tuple[int, ...] = (1, 22, 1)
    openssl: tuple[int, ...] = (3, 0)
    ipv6: bool = True

    def __str__(self) -> str:
        return f"nginx {_dotted(self.version)} with OpenSSL {_dotted(self.openssl)}"

    @property
    def has_http2_directive(self) -> bool:
        """`http2 on;` is known since 1.25.1, and from then on the parameter of `listen` is deprecated."""
        return self.version >= (1, 25, 1)

    @property
    def ciphers(self) -> str:
        """For TLS 1.2: forward secret and authenticated ones alone, none of them with finite-field Diffie-Hellman."""
        return ":".join(_CIPHERS)

    @property
    def curves(self) -> str:
        """OpenSSL refuses a whole list with one unknown name in it; the hybrid key exchange came with 3.5."""
        hybrid = ("X25519MLKEM768",) if self.openssl >= (3, 5) else ()
        return ":".join((*hybrid, *_CURVES))


def nginx_program() -> str | None:
    """NGINX's path; /usr/sbin is not on every user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def local_nginx(program: str | None) -> LocalNginx:
    """The NGINX that `program` is, on this machine; for None the defaults."""
    ipv6 = Path("/proc/net/if_inet6").exists()
    if program is None:
        return LocalNginx(ipv6=ipv6)
    told = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stderr
    return nginx_from_version_text(told, ipv6=ipv6)


def nginx_from_version_text(text: str, *, ipv6: bool) -> LocalNginx:
    """From what `nginx -V` prints. The OpenSSL that it runs with counts, not the one that it was built with."""
    version = re.search(r"nginx/(\d+(?:\.\d+)*)", text)
    openssl = re.search(r"running with OpenSSL (\d+(?:\.\d+)*)", text) or re.search(
        r"built with OpenSSL (\d+(?:\.\d+)*)", text
    )
    oldest = LocalNginx()
    return LocalNginx(
        version=_numbers(version[1]) if version else oldest.version,
        openssl=_numbers(openssl[1]) if openssl else oldest.openssl,
        ipv6=ipv6,
    )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
