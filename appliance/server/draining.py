"""The errors of a server that is about to end."""

from __future__ import annotations

import msgspec

from appliance.protocol.openai.common import ErrorBody, ErrorDetail, Resume
from appliance.server.errors import ApiError

CODE = "instance_draining"

HEADERS = {"Retry-After": "1"}  # another machine takes the request at once


def refused(message: str) -> ApiError:
    """Of a new request, and of one that has generated nothing."""
    return ApiError(503, message, code=CODE, headers=HEADERS, outcome="unavailable")


class Interrupted(ApiError):
    """Nothing is wrong with the request, and `resume` is what it takes to go on with it elsewhere."""

    def __init__(self, message: str, code: str, resume: Resume) -> None:
        super().__init__(503, message, code=code, headers=HEADERS, outcome="unavailable")
        self._resume = resume

    def body(self) -> bytes:
        detail = ErrorDetail(message=self.message, type="server_error", code=self.code, resume=self._resume)
        return msgspec.json.encode(ErrorBody(error=detail))
