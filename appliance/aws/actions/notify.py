"""Tell people and other programs."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from appliance.aws.actions.action import ActionError
from appliance.aws.clients import AwsClients, AwsError
from appliance.aws.events import Event, rfc3339
from appliance.aws.machine import Machine

TIMEOUT_SECONDS = 10.0
_SUBJECT_CHARACTERS = 99  # SNS refuses more, and all but ASCII

Phase = Literal["announced", "moved", "over"]


@dataclass(slots=True)
class Sender:
    """Who says it. The machine is known once the metadata service has answered, and never elsewhere than in EC2."""

    hostname: str
    machine: Machine | None = None


def message(event: Event, phase: Phase, sender: Sender) -> dict[str, str | None]:
    """What is sent, the same for all. `text` is a sentence for people, under the name that chat services expect."""
    machine = sender.machine
    where = machine.instance_id if machine is not None else sender.hostname
    words = {"announced": "", "moved": " (changed)", "over": " (over)"}[phase]
    return {
        "text": f"{where}: {event.summary}{words}",
        "phase": phase,
        "kind": event.kind.value,
        "event": event.identity,
        "deadline": None if event.deadline is None else rfc3339(event.deadline),
        "hostname": sender.hostname,
        "instance_id": None if machine is None else machine.instance_id,
        "region": None if machine is None else machine.region,
        "availability_zone": None if machine is None else machine.availability_zone,
    }


Send = Callable[[Mapping[str, str | None]], Awaitable[None]]


class Notify:
    """Tells one listener of an event, when it moves, and when it is over."""

    at_once = True
    repeats = True

    def __init__(self, name: str, send: Send, sender: Sender) -> None:
        """`send` raises ActionError."""
        self.name = name
        self._send = send
        self._sender = sender

    async def act(self, event: Event, *, moved: bool) -> str:
        await self._send(message(event, "moved" if moved else "announced", self._sender))
        return ""

    async def undo(self, event: Event, memo: str) -> None:
        await self._send(message(event, "over", self._sender))


class Webhook:
    """A POST of JSON. The URL is a secret, as chat services have no other: it is told to nobody."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = f"notify-webhook-{hashlib.sha256(url.encode()).hexdigest()[:8]}"

    async def send(self, content: Mapping[str, str | None]) -> None:
        headers = {"Content-Type": "application/json"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
                session.post(self._url, data=msgspec.json.encode(content), headers=headers) as response,
            ):
                if response.status >= 400:
                    raise ActionError(f"the webhook answered {response.status}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ActionError(f"the webhook cannot be called ({type(error).__name__})") from error


class SnsTopic:
    name = "notify-sns"

    def __init__(self, clients: AwsClients, topic_arn: str) -> None:
        self._clients = clients
        self._topic_arn = topic_arn

    async def send(self, content: Mapping[str, str | None]) -> None:
        subject = (content["text"] or "").encode("ascii", "replace").decode()[:_SUBJECT_CHARACTERS]
        body = msgspec.json.encode(content).decode()
        try:
            await self._clients.call("sns", "publish", TopicArn=self._topic_arn, Subject=subject, Message=body)
        except AwsError as error:
            raise ActionError(str(error)) from error
