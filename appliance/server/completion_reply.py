"""Builds the replies of `/v1/completions`, whole or in chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.protocol.openai.common import Usage
from appliance.protocol.openai.completions import (
    CompletionChoice,
    CompletionChunk,
    CompletionRequest,
    CompletionResponse,
)
from appliance.protocol.wire import TokenLogprobs
from appliance.server.context import SYSTEM_FINGERPRINT
from appliance.server.generation import Generation, Sequence
from appliance.server.intake import Prompt
from appliance.server.logprobs import TokenIdsAsNames, TokenNames, completion_logprobs, prompt_logprobs
from appliance.server.reply import Collected, ReplyHead, announced_usage
from appliance.text.sequence import SequenceDelta
from appliance.text.tokenizer import Tokenizer


def asks_for_prompt_only(request: CompletionRequest) -> bool:
    """`echo` with no token to generate: the reply is the prompt, with its logprobs if asked for."""
    return bool(request.echo) and request.max_tokens == 0


@dataclass(slots=True)
class CompletionReply:
    head: ReplyHead
    request: CompletionRequest
    tokenizer: Tokenizer | None
    prompts: list[Prompt]
    _offsets: dict[int, int] = field(default_factory=dict)  # by choice: characters whose tokens were reported

    @property
    def _names(self) -> TokenNames:
        return self.tokenizer or TokenIdsAsNames()

    @property
    def _shows_ids(self) -> bool:
        """Ids are all there is to show without a tokenizer."""
        return bool(self.request.return_token_ids) or self.tokenizer is None

    def whole(self, generation: Generation, results: list[Collected]) -> CompletionResponse:
        choices = []
        for sequence, result in zip(generation.sequences, results, strict=True):
            choice = self._choice(sequence, result.text, result.token_ids, result.logprobs, first=True)
            choice.finish_reason = result.finish_reason
            choice.stop_reason = result.stop_reason
            if self.request.prompt_logprobs is not None:
                choice.prompt_logprobs = prompt_logprobs(self._names, sequence.prompt_logprobs or [])
            choices.append(choice)
        return CompletionResponse(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=SYSTEM_FINGERPRINT,
            choices=choices,
            usage=generation.usage(),
        )

    def chunk(self, sequence: Sequence, delta: SequenceDelta, usage: Usage | None) -> CompletionChunk | None:
        """None for a part that shows nothing yet."""
        first = sequence.index not in self._offsets
        silent = not delta.text and delta.finish_reason is None and not delta.logprobs
        if silent and not (first and self.request.echo) and not self._shows_ids:
            return None
        choice = self._choice(sequence, delta.text, delta.token_ids, delta.logprobs or [], first=first)
        choice.finish_reason = delta.finish_reason
        choice.stop_reason = delta.stop_reason
        return self._chunk([choice], usage)

    def text_chunk(self, index: int) -> Callable[[str], CompletionChunk] | None:
        """Makes `chunk` of a part that only adds text to a choice which has begun; None if it takes more than that."""
        if self._shows_ids or asks_for_prompt_only(self.request):
            return None
        return lambda text: self._chunk([CompletionChoice(index=index, text=text)], None)

    def usage_chunk(self, usage: Usage) -> CompletionChunk:
        return self._chunk([], usage)

    def _chunk(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionChunk:
        return CompletionChunk(
            id=self.head.id,
            created=self.head.created,
            model=self.head.model,
            system_fingerprint=SYSTEM_FINGERPRINT,
            choices=choices,
            usage=announced_usage(self.request.stream_options, usage),
        )

    def _choice(
        self, sequence: Sequence, text: str, token_ids: list[int], logprobs: list[TokenLogprobs], *, first: bool
    ) -> CompletionChoice:
        """A choice with new tokens; with `first`, after its prompt if that is echoed."""
        prompt = self.prompts[sequence.prompt_index]
        entries: list[TokenLogprobs | None] = list(logprobs)
        if asks_for_prompt_only(self.request):
            text, entries, token_ids = "", [], []
        reported = token_ids
        if self.request.echo and first:
            text = self._prompt_text(prompt) + text
            entries = [*(sequence.prompt_logprobs or ()), *entries]
            reported = [*prompt.token_ids, *reported]
        choice = CompletionChoice(index=sequence.index, text=text)
        offset = self._offsets.setdefault(sequence.index, 0)
        if self.request.logprobs is not None:
            choice.logprobs, self._offsets[sequence.index] = completion_logprobs(self._names, reported, entries, offset)
        if self._shows_ids:
            choice.token_ids = token_ids
            if first:
                choice.prompt_token_ids = prompt.token_ids
        return choice

    def _prompt_text(self, prompt: Prompt) -> str:
        if prompt.text is not None and self.request.truncate_prompt_tokens is None:
            return prompt.text
        return "" if self.tokenizer is None else self.tokenizer.decode(prompt.token_ids)
