"""Log probabilities in OpenAI's two shapes, and in vLLM's shape for those of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from appliance.protocol.openai.chat import ChatLogprobs, ChatTokenLogprob, TopLogprob
from appliance.protocol.openai.common import PromptLogprob, PromptLogprobs
from appliance.protocol.openai.completions import CompletionLogprobs
from appliance.protocol.wire import TokenLogprobs

LOWEST = -9999.0  # what OpenAI answers where the probability is zero: JSON has no infinity


class TokenNames(Protocol):
    """How tokens are shown: a `Tokenizer`, or `TokenIdsAsNames`."""

    def token_text(self, token_id: int) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class TokenIdsAsNames:
    """For a server without a tokenizer; the spelling is vLLM's."""

    def token_text(self, token_id: int) -> str:
        return f"token_id:{token_id}"

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode()


def completion_logprobs(
    names: TokenNames, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], offset: int
) -> tuple[CompletionLogprobs, int]:
    """Four parallel lists, whose first token begins at character `offset` of the text, and the offset after them.

    An entry that is None (the first token of a prompt) has no probability.
    """
    result = CompletionLogprobs(text_offset=[], token_logprobs=[], tokens=[], top_logprobs=[])
    for token_id, entry in zip(token_ids, entries, strict=True):
        data = names.token_bytes(token_id)
        result.tokens.append(_shown(data))
        result.text_offset.append(offset)
        offset += sum(byte & 0xC0 != 0x80 for byte in data)  # characters that begin in this token
        if entry is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            continue
        own, *likely = zip(entry.token_ids, map(_finite, entry.logprobs), strict=True)
        top: dict[str, float] = {}
        for candidate, logprob in (*likely, own):
            top.setdefault(_shown(names.token_bytes(candidate)), logprob)
        result.token_logprobs.append(own[1])
        result.top_logprobs.append(top)
    return result, offset


def chat_logprobs(names: TokenNames, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
    content = []
    for entry in entries:
        own, *likely = zip(entry.token_ids, map(_finite, entry.logprobs), strict=True)
        content.append(
            ChatTokenLogprob(
                token=names.token_text(own[0]),
                logprob=own[1],
                bytes=list(names.token_bytes(own[0])),
                top_logprobs=[
                    TopLogprob(
                        token=names.token_text(token_id),
                        logprob=logprob,
                        bytes=list(names.token_bytes(token_id)),
                    )
                    for token_id, logprob in likely
                ],
            )
        )
    return ChatLogprobs(content=content)


def prompt_logprobs(names: TokenNames, entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """One map from token id to probability a prompt position; the first position has none."""
    result: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            result.append(None)
            continue
        position: dict[str, PromptLogprob] = {}
        ranks = (entry.rank, *range(1, len(entry.token_ids)))
        for token_id, logprob, rank in zip(entry.token_ids, entry.logprobs, ranks, strict=True):
            text = names.token_text(token_id)
            position.setdefault(str(token_id), PromptLogprob(logprob=_finite(logprob), rank=rank, decoded_token=text))
        result.append(position)
    return result


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def _shown(data: bytes) -> str:
    """A token as text; one that is only part of a character as OpenAI writes it, ``bytes:\\xe2\\x80``."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
