"""`pagebox spot-watcher` with nothing set but a metadata service at its real address; run in a network of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.admin_double import AdminDouble
from tests.support.aws_server import cloud
from tests.support.eventually import eventually
from tests.support.imds_double import SPOT, ImdsDouble
from tests.support.watcher_process import running_watcher

ROLE = "meta-data/iam/security-credentials/"
CREDENTIALS = (
    '{"Code": "Success", "LastUpdated": "2026-01-01T00:00:00Z", "Type": "AWS-HMAC", "AccessKeyId": "ASIATESTING", '
    '"SecretAccessKey": "secret", "Token": "token", "Expiration": "2046-01-01T00:00:00Z"}'
)


async def main(folder: Path, address: str) -> None:
    imds = ImdsDouble()
    with cloud() as aws:
        arn = aws.target_group("chat")
        aws.register(arn, aws.instance_id)
        imds.values |= {"meta-data/instance-id": aws.instance_id, ROLE: "server", ROLE + "server": CREDENTIALS}
        imds.values[SPOT] = '{"action": "stop", "time": "2046-11-24T10:02:00Z"}'
        async with (
            imds.serving(address, 80),
            AdminDouble().serving(folder / "admin.sock") as server,
            running_watcher(folder, AWS_ENDPOINT_URL=aws.url, HOME=str(folder)) as log,
        ):
            await eventually(lambda: server.state == "draining", 60)
            await eventually(lambda: not aws.targets(arn), 60)
            assert server.deadline == "2046-11-24T10:01:48Z", log.read_text()
    assert ROLE + "server" in imds.asked
    assert imds.without_token == [], imds.without_token


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
