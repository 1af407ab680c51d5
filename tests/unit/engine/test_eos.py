"""Which tokens end a sequence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from appliance.engine.eos import eos_token_ids


def test_end_of_sequence_ids_come_from_every_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    added = [{"id": 1, "content": "<|end|>"}, {"id": 2, "content": "<|start|>"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    config = SimpleNamespace(eos_token_id=9, text_config=SimpleNamespace(eos_token_id=10))
    assert eos_token_ids(tmp_path, config) == {1, 7, 8, 9, 10}


def test_a_model_that_names_none_has_none(tmp_path: Path) -> None:
    assert eos_token_ids(tmp_path, SimpleNamespace(eos_token_id=None)) == frozenset()


def test_a_gguf_file_is_looked_up_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert eos_token_ids(tmp_path / "model.gguf", SimpleNamespace(eos_token_id=4)) == {4, 5}
