"""Which machine this is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.aws.imds import Imds, ImdsAbsent, ImdsDisabled, ImdsError, ImdsUnreachable

log = logging.getLogger(__name__)

DMI = Path("/sys/devices/virtual/dmi/id")
TRIES_ELSEWHERE = 3
ASK_AGAIN_SECONDS = 600.0


# How addresses answer, or do not, where there is no metadata service, or another cloud's.
_ELSEWHERE = (ImdsUnreachable, ImdsAbsent, ImdsDisabled)


@dataclass(frozen=True, slots=True)
class Machine:
    """An EC2 instance."""

    instance_id: str
    region: str
    availability_zone: str
    address: str  # its private IPv4 address; empty in a network without


def looks_like_ec2(dmi: Path = DMI) -> bool:
    """What the firmware says. True on Nitro and Xen instances; needs no network and no privilege."""
    for name in ("sys_vendor", "bios_vendor", "bios_version", "board_asset_tag"):
        try:
            text = (dmi / name).read_text(encoding="ascii", errors="replace").strip().lower()
        except OSError:
            continue
        if "amazon" in text or (name == "board_asset_tag" and text.startswith("i-")):
            return True
    return False


async def find_machine(
    services: Sequence[Imds],
    *,
    looks_like_ec2: bool,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tuple[Machine, Imds]:
    """This machine, and the first of `services` that answers; they are the same one under several addresses.

    Returns only when one does. Elsewhere than on EC2 it says so once, and goes on asking every few minutes.
    """
    tries, said = 0, ""
    while True:
        problem: ImdsError | None = None
        elsewhere = not looks_like_ec2
        for imds in services:
            try:
                return await _machine(imds), imds
            except ImdsError as error:
                problem = problem or error  # of the first address, which most machines have
                elsewhere = elsewhere and isinstance(error, _ELSEWHERE)
        tries += 1
        if not elsewhere and str(problem) != said:
            said = str(problem)
            log.warning("EC2's notices cannot be read: %s", said)
        elif elsewhere and tries == TRIES_ELSEWHERE:
            log.info("This is no EC2 instance (%s): there are no notices to watch for", problem)
        await sleep(ASK_AGAIN_SECONDS if elsewhere and tries >= TRIES_ELSEWHERE else 1.0)


async def _machine(imds: Imds) -> Machine:
    instance_id = await imds.get("meta-data/instance-id") or ""
    zone = await imds.get("meta-data/placement/availability-zone") or ""
    region = await imds.get("meta-data/placement/region") or zone.rstrip("abcdefghijklmnopqrstuvwxyz")
    address = await imds.get("meta-data/local-ipv4") or ""
    if not instance_id.startswith("i-") or "\n" in instance_id:
        raise ImdsAbsent("what answers there knows no instance id")
    return Machine(instance_id, region, zone, address)
