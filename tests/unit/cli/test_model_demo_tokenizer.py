"""The tokenizer that is made of the demo model's GGUF file is the one that its authors publish."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from appliance.text.tokenizer import Tokenizer


def test_the_tokenizer_of_the_demo_model_is_smollm2s(demo_model: Path) -> None:
    ours, theirs = Tokenizer.load(str(demo_model)), AutoTokenizer.from_pretrained(demo_model)
    text = "In 2024, naïve x=12345 🌍\n\tdef f():<|im_end|>"
    ids = ours.encode(text)
    assert ids == theirs(text)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=False) == text
    pieces = [ours.token_text(i) for i in ids]
    assert [piece for piece in pieces if piece.strip().isdigit()] == list("202412345")
    assert pieces[-1] == "<|im_end|>"
    assert {ours.token_text(i) for i in ours.special_token_ids} >= {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}


def test_the_chat_template_of_the_demo_model_is_smollm2s(demo_model: Path) -> None:
    tokenizer = Tokenizer.load(str(demo_model))
    ids = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
