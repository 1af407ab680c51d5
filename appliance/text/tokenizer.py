"""The tokenizer of one model: text to token ids and back, chat templates, special tokens. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from appliance.text.chat import render_chat
from appliance.text.token_bytes import ByteScheme, byte_scheme
from appliance.text.tokenizer_files import load_pretrained

TokenizerMode = Literal["auto", "slow"]


class Tokenizer:
    """A Hugging Face tokenizer behind the few operations that serving needs.

    Encoding and decoding are safe to call from several threads at once; they release Python's global lock.
    """

    def __init__(self, pretrained: Any, *, chat_template: str | None = None) -> None:
        """`pretrained` is any transformers tokenizer; `chat_template` overrides its own."""
        self.pretrained = pretrained
        self.chat_template = chat_template
        self._backend = getattr(pretrained, "backend_tokenizer", None)  # None for a tokenizer written in Python
        self._bytes: dict[int, bytes] = {}
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @classmethod
    def load(
        cls,
        path_or_id: str,
        *,
        mode: TokenizerMode = "auto",
        revision: str | None = None,
        download_dir: str | None = None,
        trust_remote_code: bool = False,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """The tokenizer of a model folder or Hugging Face id.

        `auto` uses the folder's `tokenizer.json`, or makes one in a child process where there is only an older format;
        `slow` uses the tokenizer that transformers has in Python for it, if any, and imports torch.
        `chat_template` is the template itself (Jinja). Raises `TokenizerLoadError`.
        """
        pretrained = load_pretrained(
            path_or_id,
            slow=mode == "slow",
            revision=revision,
            download_dir=download_dir,
            trust_remote_code=trust_remote_code,
        )
        return cls(pretrained, chat_template=chat_template)

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included. A model's embedding may have more rows than this, as padding."""
        return len(self.pretrained)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` leaves out."""
        return frozenset(i for i, token in self.pretrained.added_tokens_decoder.items() if token.special)

    @cached_property
    def byte_scheme(self) -> ByteScheme | None:
        """How tokens spell bytes; None for a tokenizer that has to see neighbours to decode a token."""
        if self._backend is None or self._backend.decoder is None:
            return None
        return byte_scheme(self._backend.decoder.__getstate__())

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, never truncated. Special tokens written out in the text become their ids.

        Raises ValueError for a text that isn't Unicode: JSON can spell half of a surrogate pair.
        """
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """`encode` of each text, on several cores."""
        for text in texts:
            _require_unicode(text)
        if self._backend is None:
            return [list(self.pretrained.encode(text, add_special_tokens=add_special_tokens)) for text in texts]
        if len(texts) == 1:
            return [list(self._backend.encode(texts[0], add_special_tokens=add_special_tokens).ids)]
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encodings]

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """The text of `ids`; ids outside the vocabulary have none.

        `spaces_between_special_tokens` matters to tokenizers written in Python only: others insert no spaces.
        """
        if self._backend is None:
            known = [i for i in ids if 0 <= i < self.vocab_size]
            text = self.pretrained.decode(
                known,
                skip_special_tokens=skip_special_tokens,
                spaces_between_special_tokens=spaces_between_special_tokens,
                clean_up_tokenization_spaces=False,
            )
            return str(text)
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own: a part of a character reads as U+FFFD. Special tokens are shown."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to the text, leading space included; empty outside the vocabulary."""
        cached = self._bytes.get(token_id)
        if cached is None:
            cached = self._bytes[token_id] = self._compute_token_bytes(token_id)
        return cached

    def _compute_token_bytes(self, token_id: int) -> bytes:
        scheme = self.byte_scheme
        if scheme is None or self._backend is None:
            return self.decode([token_id], skip_special_tokens=False).encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else scheme.token_bytes(token)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a conversation; `kwargs` (`tools` among them) are handed to the template.

        Raises `ChatTemplateError` when there is no template or it refuses the conversation.
        """
        text = render_chat(
            self.pretrained,
            messages,
            chat_template=chat_template or self.chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            kwargs=kwargs or {},
        )
        return self.encode(text, add_special_tokens=False)

    def bad_words_ids(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The token sequences that spell each word, directly after other text and after a space."""
        spellings = [space + word.lstrip() for word in words for space in ("", " ")]
        found = dict.fromkeys(tuple(self._encode_within_text(spelling)) for spelling in spellings)  # keeps the order
        return tuple(ids for ids in found if ids)

    def _encode_within_text(self, text: str) -> list[int]:
        """Ids of `text` as it follows other text: sentencepiece puts a space before what begins a text."""
        if self.byte_scheme is not None and self.byte_scheme.kind == "sentencepiece":
            ids = self.encode("\n" + text, add_special_tokens=False)
            for position, token in enumerate(ids):
                if self.token_bytes(token) == b"\n":
                    return ids[position + 1 :]
        return self.encode(text, add_special_tokens=False)


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half of a surrogate pair at character {error.start}") from error
