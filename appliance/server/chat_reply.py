"""Builds the replies of `/v1/chat/completions`, whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import UNSET

from appliance.protocol.openai.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatDelta,
    ResponseMessage,
)
from appliance.protocol.openai.common import Usage
from appliance.server.context import SYSTEM_FINGERPRINT
from appliance.server.generation import Generation, Sequence
from appliance.server.intake import Prompt
from appliance.server.logprobs import chat_logprobs, prompt_logprobs
from appliance.server.reply import Collected, ReplyHead, announced_usage
from appliance.text.sequence import SequenceDelta
from appliance.text.tokenizer import Tokenizer


@dataclass(slots=True)
class ChatReply:
    head: ReplyHead
    request: ChatCompletionRequest
    tokenizer: Tokenizer
    prompt: Prompt
    last_message: dict[str, Any]
    role: str
    _begun: set[int] = field(default_factory=set)  # choices whose role was sent

    def whole(self, generation: Generation, results: list[Collected]) -> ChatCompletionResponse:
        wants_ids = self.request.return_token_ids
        choices = [
            ChatChoice(
                index=sequence.index,
                message=ResponseMessage(role=self.role, content=self._echoed() + result.text),
                logprobs=chat_logprobs(self.tokenizer, result.logprobs) if self.request.logprobs else None,
                finish_reason=result.finish_reason,
                stop_reason=result.stop_reason,
                token_ids=result.token_ids if wants_ids else UNSET,
            )
            for sequence, result in zip(generation.sequences, results, strict=True)
        ]
        response = ChatCompletionResponse(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=SYSTEM_FINGERPRINT,
            choices=choices,
            usage=generation.usage(),
        )
        if self.request.prompt_logprobs is not None:
            response.prompt_logprobs = prompt_logprobs(self.tokenizer, generation.sequences[0].prompt_logprobs or [])
        if wants_ids:
            response.prompt_token_ids = self.prompt.token_ids
        return response

    def chunk(self, sequence: Sequence, delta: SequenceDelta, usage: Usage | None) -> ChatCompletionChunk | None:
        """None for a part that shows nothing yet. The first chunk of a choice has its role."""
        first = sequence.index not in self._begun
        silent = not delta.text and delta.finish_reason is None and not delta.logprobs
        if silent and not first and not self.request.return_token_ids:
            return None
        content = self._echoed() + delta.text if first else delta.text
        choice = ChatChunkChoice(
            index=sequence.index,
            delta=ChatDelta(role=self.role, content=content) if first else ChatDelta(content=content),
        )
        if self.request.logprobs and delta.logprobs:
            choice.logprobs = chat_logprobs(self.tokenizer, delta.logprobs)
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            choice.stop_reason = delta.stop_reason
        if self.request.return_token_ids:
            choice.token_ids = delta.token_ids
        chunk = self._chunk([choice], usage)
        if self.request.return_token_ids and not self._begun:
            chunk.prompt_token_ids = self.prompt.token_ids
        self._begun.add(sequence.index)
        return chunk

    def text_chunk(self, index: int) -> Callable[[str], ChatCompletionChunk] | None:
        """Makes `chunk` of a part that only adds text to a choice which has begun; None if it takes more than that."""
        if self.request.return_token_ids:
            return None
        return lambda text: self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(content=text))], None)

    def usage_chunk(self, usage: Usage) -> ChatCompletionChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=SYSTEM_FINGERPRINT,
            choices=choices,
            usage=announced_usage(self.request.stream_options, usage),
        )

    def _echoed(self) -> str:
        """With `echo`: the text that the reply continues, if the last message is the reply's own beginning."""
        if self.request.echo and self.last_message["role"] == self.role:
            return str(self.last_message["content"])
        return ""
