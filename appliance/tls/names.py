"""What this machine is called, for the certificate that it makes itself."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.tls.errors import TlsError

# In every machine's own certificate, so that a balancer that trusts it needs no name for each.
INTERNAL_NAME = "pagebox.internal"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_DNS_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
# Addresses for documentation (RFC 5737, RFC 3849). A datagram socket that is connected to one sends nothing, but has
# the address from which this machine reaches others.
_OUTSIDE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


@dataclass(frozen=True, slots=True)
class Names:
    """Subject alternative names: DNS names in lower case, and IP addresses."""

    dns: frozenset[str]
    addresses: frozenset[Address]

    def __or__(self, other: Names) -> Names:
        return Names(self.dns | other.dns, self.addresses | other.addresses)

    def __le__(self, other: Names) -> bool:
        return self.dns <= other.dns and self.addresses <= other.addresses

    def __str__(self) -> str:
        return ", ".join([*sorted(self.dns), *sorted(map(str, self.addresses))])


def parsed_names(texts: Iterable[str]) -> Names:
    """DNS names and addresses, told apart by their form. Raises TlsError for what is neither."""
    dns: set[str] = set()
    addresses: set[Address] = set()
    for text in texts:
        name = text.lower().rstrip(".")
        try:
            addresses.add(ipaddress.ip_address(name))
        except ValueError:
            if len(name) > 253 or not _DNS_NAME.fullmatch(name):
                raise TlsError(f"{text!r} is neither a DNS name nor an IP address.") from None
            dns.add(name)
    return Names(frozenset(dns), frozenset(addresses))


def local_names() -> Names:
    """The names that need nobody's help: no name server, no metadata service."""
    here = parsed_names(["localhost", INTERNAL_NAME, "127.0.0.1", "::1", *_own_addresses()])
    hostname = socket.gethostname().lower()
    return here | parsed_names([hostname]) if _DNS_NAME.fullmatch(hostname) else here


def _own_addresses() -> list[str]:
    """Of the interfaces that lead outside. Those of bridges and containers are nobody's way to this machine."""
    found = []
    for family, outside in _OUTSIDE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((outside, 9))
                found.append(str(probe.getsockname()[0]))
        except OSError:  # no route, or no such protocol
            continue
    return found
