from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from appliance.text.chat import ChatTemplateError
from appliance.text.tokenizer import Tokenizer
from appliance.text.tokenizer_files import TokenizerLoadError

MESSAGES = [{"role": "user", "content": "The dog"}]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.18"),
    reason="tokenizers of transformers 5.17 import torch themselves",
)
def test_tokenizing_and_chat_templates_import_no_torch(byte_level_folder: Path) -> None:
    program = (
        "import sys, appliance.text.sequence; from appliance.text.tokenizer import Tokenizer; "
        f"t = Tokenizer.load({str(byte_level_folder)!r}); t.decode(t.encode('x')); t.token_bytes(3); "
        f"t.apply_chat_template({MESSAGES!r}); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_conversation_becomes_token_ids(byte_level: Tokenizer) -> None:
    ids = byte_level.apply_chat_template(MESSAGES)
    assert byte_level.decode(ids, skip_special_tokens=False) == ("<|start|>user\nThe dog<|end|>\n<|start|>assistant\n")
    assert ids[0] == 0
    without = byte_level.apply_chat_template(MESSAGES, add_generation_prompt=False)
    assert byte_level.decode(without, skip_special_tokens=False) == "<|start|>user\nThe dog<|end|>\n"


def test_the_final_message_can_be_continued(byte_level: Tokenizer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "The quick"}]
    ids = byte_level.apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert byte_level.decode(ids, skip_special_tokens=False).endswith("<|start|>assistant\nThe quick")


def test_content_given_as_text_parts_is_joined(byte_level: Tokenizer) -> None:
    parts = [{"type": "text", "text": "The"}, {"type": "text", "text": "dog"}]
    ids = byte_level.apply_chat_template([{"role": "user", "content": parts}])
    assert ids == byte_level.apply_chat_template([{"role": "user", "content": "The\ndog"}])


def test_a_given_template_overrides_the_models(byte_level: Tokenizer) -> None:
    template = "{{ messages[0]['content'] }} {{ flavour }}"
    ids = byte_level.apply_chat_template(MESSAGES, chat_template=template, kwargs={"flavour": "sweet"})
    assert byte_level.decode(ids) == "The dog sweet"


@pytest.mark.parametrize(
    ("messages", "options", "reason"),
    [
        ([], {}, "must not be empty"),
        ([{"role": "bad", "content": "x"}], {}, "unknown role bad"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], {}, "image_url"),
        (MESSAGES, {"chat_template": "{% for %}"}, "not valid Jinja"),
        (MESSAGES, {"chat_template": "{{ messages[7].content.x }}"}, "messages"),
        (MESSAGES, {"chat_template": "{{ ''.__class__.__mro__ }}"}, "unsafe"),
        (MESSAGES, {"kwargs": {"tokenize": True}}, "tokenize"),
        (MESSAGES, {"continue_final_message": True}, "add_generation_prompt"),
    ],
)
def test_a_conversation_that_cannot_be_rendered_says_why(
    byte_level: Tokenizer, messages: list, options: dict, reason: str
) -> None:
    with pytest.raises(ChatTemplateError, match=reason):
        byte_level.apply_chat_template(messages, **options)


def test_a_model_without_template_says_what_to_do(byte_level_folder: Path, tmp_path: Path) -> None:
    shutil.copy(byte_level_folder / "tokenizer.json", tmp_path)
    with pytest.raises(ChatTemplateError, match="--chat-template"):
        Tokenizer.load(str(tmp_path)).apply_chat_template(MESSAGES)


def test_an_older_tokenizer_format_is_converted(byte_level_folder: Path, tmp_path: Path) -> None:
    model = json.loads((byte_level_folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"})
    )
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("The quick 🌍")) == "The quick 🌍"


def test_a_folder_without_tokenizer_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TokenizerLoadError, match="--tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_a_broken_tokenizer_file_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(TokenizerLoadError, match="--tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_encoding_never_truncates(byte_level_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_level_folder, tmp_path, dirs_exist_ok=True)
    state = json.loads((tmp_path / "tokenizer.json").read_text())
    state["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.decode(tokenizer.encode("dog " * 100)) == "dog " * 100


def test_a_batch_encodes_as_its_texts_do(byte_level: Tokenizer) -> None:
    texts = ["", "The dog", "🌍"]
    assert byte_level.encode_batch(texts) == [byte_level.encode(text) for text in texts]


def test_half_of_a_surrogate_pair_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match="surrogate pair at character 1"):
        byte_level.encode("a\ud83d")


def test_token_bytes_are_the_tokens_part_of_the_text(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer.encode("über the 🧿 dog")
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().strip() == "über the 🧿 dog"
    assert byte_level.token_bytes(10**6) == b""
    assert byte_level.token_text(byte_level.encode("🧿")[0]) == "�"
    assert byte_level.token_text(1) == "<|end|>"


def test_special_tokens_in_a_text_become_their_ids(byte_level: Tokenizer) -> None:
    assert byte_level.encode("a<|end|>")[-1] == 1
    assert byte_level.special_token_ids == {0, 1}


def test_bad_words_are_found_at_the_start_and_after_a_space(byte_level: Tokenizer) -> None:
    plain, spaced = (tuple(byte_level.encode(text)) for text in ("dog", " dog"))
    assert byte_level.bad_words_ids(["dog"]) == (plain, spaced)
    assert byte_level.bad_words_ids([" dog"]) == (plain, spaced)


def test_bad_words_of_sentencepiece_have_no_space_that_the_word_has_not(sentencepiece: Tokenizer) -> None:
    found = sentencepiece.bad_words_ids(["dog"])
    assert [b"".join(map(sentencepiece.token_bytes, ids)) for ids in found] == [b"dog", b" dog"]
