"""A cloud for each module, and this program's own clients of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.aws.clients import AwsClients
from appliance.aws.machine import Machine
from tests.support.aws_server import CREDENTIALS, REGION, Cloud, cloud


@pytest.fixture(scope="module")
def aws() -> Iterator[Cloud]:
    with cloud() as furnished:
        yield furnished


@pytest.fixture
def clients(aws: Cloud, monkeypatch: pytest.MonkeyPatch) -> AwsClients:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
    return AwsClients(REGION, "http://127.0.0.1:9")


@pytest.fixture
def machine(aws: Cloud) -> Machine:
    return Machine(aws.instance_id, REGION, f"{REGION}a", aws.address)
