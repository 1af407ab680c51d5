"""Keys in AWS: one document for many machines, which may read it by their instance role.

boto3 finds region, credentials and endpoint as it always does (environment, configuration files, instance metadata).
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from appliance.keys.errors import KeysError
from appliance.keys.sources import AWS_SECONDS

TIMEOUT_SECONDS = 5.0
ATTEMPTS = 3


class _AwsSource:
    """Reads one value of one service. Every look is a read: neither service answers "unchanged" any cheaper."""

    seconds = AWS_SECONDS
    service: str

    def __init__(self, place: str, name: str, region: str | None, what: str) -> None:
        self.place = place
        self._name = name
        self._region = region
        self._what = what

    def version(self) -> object:
        return None

    def read(self) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._read()
        except ClientError as error:
            details = error.response["Error"]
            reason = f"{details['Code']}: {details['Message']}" if details.get("Message") else details["Code"]
            raise KeysError(f"{self._what} {self.place} cannot be read: {reason.rstrip('.')}.") from error
        except BotoCoreError as error:
            raise KeysError(f"{self._what} {self.place} cannot be read: {str(error).rstrip('.')}.") from error

    def _read(self) -> bytes:
        raise NotImplementedError

    @cached_property
    def _client(self) -> Any:
        import boto3  # half a second, and needed by nobody else who has keys
        from botocore.config import Config

        retries = {"total_max_attempts": ATTEMPTS, "mode": "standard"}
        config = Config(connect_timeout=TIMEOUT_SECONDS, read_timeout=TIMEOUT_SECONDS, retries=retries)
        return boto3.client(self.service, region_name=self._region, config=config)


class ParameterSource(_AwsSource):
    """A parameter of SSM, a SecureString preferably. Needs ssm:GetParameter, and kms:Decrypt for an own key."""

    service = "ssm"

    def _read(self) -> bytes:
        answer = self._client.get_parameter(Name=self._name, WithDecryption=True)
        return str(answer["Parameter"]["Value"]).encode()


class SecretSource(_AwsSource):
    """A secret's current version. Needs secretsmanager:GetSecretValue, and kms:Decrypt for an own key."""

    service = "secretsmanager"

    def _read(self) -> bytes:
        answer = self._client.get_secret_value(SecretId=self._name)
        text = answer.get("SecretString")
        return bytes(answer["SecretBinary"]) if text is None else str(text).encode()
