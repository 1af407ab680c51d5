"""What EC2 calls this machine; only the metadata service knows a public address, which no interface has."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.aws.machine import DMI, looks_like_ec2
from appliance.tls.errors import TlsError
from appliance.tls.names import Names, parsed_names

_PATHS = ("local-hostname", "public-hostname", "local-ipv4", "public-ipv4", "ipv6")
_NONE = Names(frozenset(), frozenset())


def ec2_names(dmi: Path = DMI, endpoints: Sequence[str] = ()) -> Names:
    """Names and addresses of this instance; none elsewhere than on EC2, where nobody is asked.

    `endpoints` are those of the metadata service, the real ones by default. Where it does not answer, that is said on
    standard error: a certificate without the public address is better than none.
    """
    if not looks_like_ec2(dmi):
        return _NONE
    from appliance.aws.imds import IPV4_ENDPOINT, IPV6_ENDPOINT, ImdsError

    problem: ImdsError | None = None
    for endpoint in endpoints or (IPV4_ENDPOINT, IPV6_ENDPOINT):
        try:
            return _understood(asyncio.run(_asked(endpoint)))
        except ImdsError as error:
            problem = problem or error
    print(f"The certificate goes without EC2's names for this machine: {problem}.", file=sys.stderr)
    return _NONE


async def _asked(endpoint: str) -> list[str]:
    import aiohttp

    from appliance.aws.imds import Imds

    async with aiohttp.ClientSession(trust_env=False) as session:
        imds = Imds(session, endpoint)
        return [await imds.get(f"meta-data/{path}") or "" for path in _PATHS]


def _understood(texts: Sequence[str]) -> Names:
    """An instance may have several of a kind, a line each; what is no name is somebody's mistake, and left out."""
    names = _NONE
    for line in "\n".join(texts).split():
        try:
            names |= parsed_names([line])
        except TlsError:
            continue
    return names
