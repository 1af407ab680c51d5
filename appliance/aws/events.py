"""What can happen to the machine."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """Each has a setting `on-…` that says what to do about it."""

    SPOT_INTERRUPTION = "spot-interruption"
    REBALANCE_RECOMMENDATION = "rebalance-recommendation"
    SCHEDULED_MAINTENANCE = "scheduled-maintenance"
    AUTO_SCALING_TERMINATION = "auto-scaling-termination"
    GPU_FAILURE = "gpu-failure"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One announcement. Two with the same `identity` are the same one, whatever else they say: then it has moved."""

    identity: str  # made of what the announcement says, never of when it was seen
    kind: Kind
    summary: str  # a sentence for people
    deadline: datetime | None = None  # when the machine goes; None: nobody said
    act_from: datetime | None = None  # before that it is only told; None: at once
    outlives_boot: bool = False  # true: a reboot is what it announced, and does not make it a new one


def rfc3339(moment: datetime) -> str:
    """`2026-11-24T15:20:00Z`."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def utc_time(text: str) -> datetime:
    """The reverse, for what EC2 writes. Raises ValueError, also for a time without its zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not say its time zone")
    return moment.astimezone(UTC)
