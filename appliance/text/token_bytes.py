"""The bytes that each token stands for, where a tokenizer works on bytes.

Nearly every generative model has one of two kinds of tokenizer, and in both the text of a token sequence is the
concatenation of its tokens' bytes, read as UTF-8:

* byte-level BPE (GPT-2 and after: Llama 3, Qwen, SmolLM), whose vocabulary spells each byte as a printable character;
* sentencepiece (Llama 2, Mistral, Gemma), whose vocabulary spells a space as `▁` and has a token for each byte, such as
  `<0xE2>`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

_BYTE_TOKEN_LENGTH = len("<0x00>")


@dataclass(frozen=True)
class ByteScheme:
    """How a tokenizer spells bytes. With `strips_first_space` a text that begins with a space loses it in decoding."""

    kind: Literal["byte_level", "sentencepiece"]
    space: str = "▁"
    strips_first_space: bool = False

    def token_bytes(self, token: str) -> bytes:
        """The bytes of a vocabulary entry, or of an added token."""
        if self.kind == "byte_level":
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:  # an added token, stored as it reads
                return token.encode()
        if len(token) == _BYTE_TOKEN_LENGTH and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace(self.space, " ").encode()


def byte_scheme(decoder_state: bytes | None) -> ByteScheme | None:
    """The scheme of a `tokenizers` decoder, given as its JSON state; None when the text isn't a plain concatenation."""
    if decoder_state is None:
        return None
    decoder = json.loads(decoder_state)
    parts: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    if kinds == ["ByteLevel"]:
        return ByteScheme("byte_level")
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        space = parts[0]["pattern"].get("String")
        no_strip: dict[str, Any] = {"content": " ", "start": 0, "stop": 0}
        strip = parts[3] if len(parts) == 4 else no_strip
        if (
            space
            and parts[0]["content"] == " "
            and strip["content"] == " "
            and strip["stop"] == 0 <= strip["start"] <= 1
        ):
            return ByteScheme("sentencepiece", space=space, strips_first_space=strip["start"] == 1)
    return None


def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
