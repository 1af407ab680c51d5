"""botocore, set up for a small program on an EC2 instance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

_CONFIG = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3})

Call = Callable[..., Awaitable[Any]]


class AwsError(Exception):
    """A call failed. `code` is AWS's own, such as ValidationError; empty when there was no answer."""

    def __init__(self, operation: str, code: str, message: str) -> None:
        super().__init__(f"{operation}: {code + ': ' if code else ''}{message}")
        self.code = code


class AwsClients:
    """Clients of one region, made when they are first used. Calls run in threads, as botocore blocks."""

    def __init__(self, region: str, imds_endpoint: str) -> None:
        """Credentials are found in botocore's usual order, at last from the metadata service, by version 2 alone.
        Endpoints can be changed with botocore's own variables, AWS_ENDPOINT_URL and the like."""
        session = botocore.session.get_session()
        session.set_config_variable("ec2_metadata_v1_disabled", True)
        session.set_config_variable("ec2_metadata_service_endpoint", imds_endpoint)
        session.set_config_variable("metadata_service_timeout", 2)
        session.set_config_variable("metadata_service_num_attempts", 3)
        self._session = session
        self._region = region
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """botocore's own client, for the load balancer "elbv2", "autoscaling" and "sns"."""
        if service not in self._clients:
            self._clients[service] = self._session.create_client(service, region_name=self._region, config=_CONFIG)
        return self._clients[service]

    async def call(self, service: str, operation: str, **parameters: Any) -> dict[str, Any]:
        """One answer. `operation` is botocore's name of the method. Raises AwsError."""

        def call() -> Any:
            return getattr(self.client(service), operation)(**parameters)

        return dict(await _in_thread(operation, call))

    async def list_all(self, service: str, operation: str, key: str, **parameters: Any) -> list[Any]:
        """What stands under `key` in all pages of the answer. Raises AwsError."""

        def call() -> Any:
            pages = self.client(service).get_paginator(operation).paginate(**parameters)
            return [item for page in pages for item in page[key]]

        return list(await _in_thread(operation, call))


async def _in_thread(operation: str, call: Callable[[], Any]) -> Any:
    try:
        return await asyncio.to_thread(call)
    except ClientError as error:
        details = error.response.get("Error", {})
        raise AwsError(operation, str(details.get("Code", "")), str(details.get("Message", error))) from error
    except (BotoCoreError, ResponseParserError) as error:  # the latter: what answers is no part of AWS
        raise AwsError(operation, "", str(error)) from error
