"""Deltas of one request on their way to one consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from appliance.protocol.wire import TokenDelta

Consumer = Callable[[TokenDelta], bool]  # False: no more for now


class DeltaStream:
    """A queue of length one: a delta that was not taken yet is merged with the next, so a slow consumer costs no more
    than its own tokens.

    The consumer is a function that is called where deltas arrive. Waking a task for every token would cost more than
    all that is done with the token.
    """

    def __init__(self) -> None:
        self._pending: TokenDelta | None = None
        self._failure: Exception | None = None
        self._consumer: Consumer | None = None
        self._fed: asyncio.Future[None] | None = None
        self.has_begun = False  # its first delta came
        self.is_complete = False  # its last delta came

    def put(self, delta: TokenDelta) -> bool:
        """Add `delta`, whose lists belong to the stream from now on. True if there was nothing to `deliver` before."""
        self.has_begun = True
        self.is_complete = delta.finish_reason is not None
        if self._pending is None:
            self._pending = delta
            return True
        self._pending = merge(self._pending, delta)
        return False

    def deliver(self) -> None:
        """Call the consumer, if it is there, with all that came."""
        delta, consumer = self._pending, self._consumer
        if delta is None or consumer is None:
            return
        self._pending = None
        try:
            wants_more = consumer(delta)
        except Exception as error:
            self._end(error)
        else:
            if not wants_more:
                self._end(None)

    def fail(self, error: Exception) -> None:
        """Raise `error` in `feed` once the consumer has taken what came before."""
        self._failure = error
        self.deliver()
        if self._consumer is not None:
            self._end(error)

    async def feed(self, consumer: Consumer) -> None:
        """Have `consumer` called with all that came since the last call, now and whenever more comes.

        Returns when it returns False; raises what it raises, and the error of `fail`.
        """
        self._consumer = consumer
        self._fed = asyncio.get_running_loop().create_future()
        try:
            self.deliver()
            if self._failure is not None and self._consumer is not None:
                raise self._failure
            await self._fed
        finally:
            self._consumer = self._fed = None

    def _end(self, error: Exception | None) -> None:
        self._consumer = None
        if self._fed is None or self._fed.done():
            return
        if error is None:
            self._fed.set_result(None)
        else:
            self._fed.set_exception(error)


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
