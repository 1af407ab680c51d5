"""Deltas of one request on their way to one consumer."""

from __future__ import annotations

import asyncio

import msgspec

from appliance.protocol.wire import TokenDelta


class DeltaStream:
    """A queue of length one: a delta that was not taken yet is merged with the next, so a slow consumer costs no more
    than its own tokens."""

    def __init__(self) -> None:
        self._pending: TokenDelta | None = None
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.has_begun = False  # its first delta came

    def put(self, delta: TokenDelta) -> None:
        """Hand over `delta`, whose lists belong to the stream from now on."""
        self.has_begun = True
        self._pending = delta if self._pending is None else merge(self._pending, delta)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise `error` in the consumer once it has taken what came before."""
        self._failure = error
        self._wake()

    async def take(self) -> TokenDelta:
        """All that came since the last call; waits if nothing did."""
        while self._pending is None:
            if self._failure is not None:
                raise self._failure
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        delta, self._pending = self._pending, None
        return delta

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def merge(first: TokenDelta, second: TokenDelta) -> TokenDelta:
    """Both as one delta. The token and logprob lists of `first` are extended in place."""
    first.token_ids.extend(second.token_ids)
    logprobs = first.logprobs
    if second.logprobs:
        logprobs = [*(logprobs or ()), *second.logprobs]
    return msgspec.structs.replace(
        second,
        token_ids=first.token_ids,
        logprobs=logprobs,
        num_cached_tokens=max(first.num_cached_tokens, second.num_cached_tokens),
        prompt_logprobs=first.prompt_logprobs if second.prompt_logprobs is None else second.prompt_logprobs,
        queue_time=first.queue_time if second.queue_time is None else second.queue_time,
        prefill_time=first.prefill_time if second.prefill_time is None else second.prefill_time,
    )
