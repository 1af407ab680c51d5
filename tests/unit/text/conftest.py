"""Small tokenizers of each kind that models have, trained on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE, WordPiece

from appliance.text.tokenizer import Tokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog did not mind.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; über, über, über.",
    "Naïve façade — 漢字 and かな and emoji 🌍🌍 with 12345 numbers 67890.",
    "def main():\n    return [x for x in range(10)]\n\n\n",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'bad' %}{{ raise_exception('unknown role bad') }}{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as GPT-2's descendants have it (Llama 3, Qwen, SmolLM)."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|start|>", "<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    return _write(tmp_path_factory.mktemp("byte-level"), backend, bos="<|start|>", eos="<|end|>")


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Llama 2 and Mistral have it: `▁` for spaces, a token for each byte, a space before any text."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=special + byte_tokens, limit_alphabet=60)
    backend.train_from_iterator(SENTENCES, trainer)
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in special]
    state["model"] |= {"byte_fallback": True, "unk_token": "<unk>", "fuse_unk": True}
    state["pre_tokenizer"] = None
    backend = Backend.from_str(json.dumps(state))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _write(tmp_path_factory.mktemp("sentencepiece"), backend, bos="<s>", eos="</s>")


@pytest.fixture(scope="session")
def word_piece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose decoder looks at neighbours: BERT's."""
    backend = Backend(WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"]))
    return _write(tmp_path_factory.mktemp("word-piece"), backend, bos="[UNK]", eos="[SEP]")


def _write(folder: Path, backend: Backend, *, bos: str, eos: str) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.load(str(byte_level_folder))


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_folder: Path) -> Tokenizer:
    return Tokenizer.load(str(sentencepiece_folder))


@pytest.fixture(scope="session")
def word_piece(word_piece_folder: Path) -> Tokenizer:
    return Tokenizer.load(str(word_piece_folder))
