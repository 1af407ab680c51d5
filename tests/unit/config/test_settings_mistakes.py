"""Each mistake is one sentence that names the setting, where it was written, and the nearest valid name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.config import ConfigError, require_model, resolve_file, resolve_values
from tests.unit.config.command_line import resolved


def mistake_in_file(folder: Path, text: str) -> str:
    file = folder / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve_file(file)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--max-num-seqs", "many"], ["max-num-seqs", "whole number", "'many'", "flag --max-num-seqs"]),
        (["--max-num-seqs", "0"], ["max-num-seqs", "at least 1", "not 0"]),
        (["--max-num-seqs", "-4"], ["max-num-seqs", "at least 1", "not -4"]),
        (["--max-num-seqs", "9" * 5000], ["max-num-seqs", "whole number"]),
        (["--kv-cache-memory", "9" * 400 + "GiB"], ["kv-cache-memory", "a size in bytes"]),
        (["--max-num-seqs", "2.5"], ["max-num-seqs", "whole number", "'2.5'"]),
        (["--max-num-seqs", "4k"], ["max-num-seqs", "whole number", "'4k'"]),
        (["--port", "70000"], ["port", "from 0 to 65535"]),
        (["--block-size", "512"], ["block-size", "from 8 to 256"]),
        (["--gpu-memory-utilization", "1.2"], ["gpu-memory-utilization", "above 0 and at most 1"]),
        (["--gpu-memory-utilization", "0"], ["gpu-memory-utilization", "above 0 and at most 1"]),
        (["--gpu-memory-utilization", "nan"], ["gpu-memory-utilization", "not nan"]),
        (["--drain-timeout", "inf"], ["drain-timeout", "not inf"]),
        (["--dtype", "bfloat61"], ["dtype", "one of auto, float16, bfloat16, float32", "did you mean bfloat16?"]),
        (["--max-model-len", "atuo"], ["max-model-len", "or auto", "did you mean auto?"]),
        (["--kv-cache-memory", "4G"], ["kv-cache-memory", "a size in bytes such as 4GiB", "'4G'"]),
        (["--hf-overrides", "[1]"], ["hf-overrides", "a JSON object"]),
        (["--hf-overrides", "{a: 1}"], ["hf-overrides", "a JSON object"]),
        (["--tokenizer", ""], ["tokenizer", "not empty"]),
        (["m", "--model", "k"], ["Two models", "m (argument MODEL)", "k (flag --model)"]),
    ],
)
def test_a_wrong_value_on_the_command_line(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(*words)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_unknown_flag_offers_the_nearest_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolved("model", "--max-num-sequences", "4")
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "pagebox serve: unknown flag --max-num-sequences; did you mean --max-num-seqs?\n"
    )


def test_flags_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolved("--max-num-s", "4")
    assert "did you mean --max-num-seqs?" in capsys.readouterr().err


def test_a_switch_with_a_wrong_value_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        resolved("--enforce-eager=maybe")
    assert caught.value.code == 2
    assert "--enforce-eager must be true or false, not 'maybe'" in capsys.readouterr().err


def test_a_wrong_value_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"must be true or false, not 'maybe' \(environment variable PAGEBOX_ENFORCE"):
        resolved(PAGEBOX_ENFORCE_EAGER="maybe")


def test_an_unknown_variable_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"PAGEBOX_MAX_NUM_SEQ; did you mean PAGEBOX_MAX_NUM_SEQS\?"):
        resolved(PAGEBOX_MAX_NUM_SEQ="4")


def test_a_mistake_that_a_stronger_source_covers_up_is_still_told() -> None:
    with pytest.raises(ConfigError, match="PAGEBOX_PORT"):
        resolved("--port", "1", PAGEBOX_PORT="x")


def test_an_unknown_key_in_a_file_names_the_line_and_the_nearest(tmp_path: Path) -> None:
    message = mistake_in_file(tmp_path, "port: 1\nmax_num_seq: 4\n")
    assert "max-num-seq " in message and "c.yaml:2" in message and "did you mean max-num-seqs?" in message


def test_a_key_that_is_like_no_other_gets_no_suggestion(tmp_path: Path) -> None:
    assert "did you mean" not in mistake_in_file(tmp_path, "zzzzzz: 4\n")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("max_num_seqs: '4'\n", "whole number"),
        ("max_num_seqs: true\n", "not true"),
        ("max_num_seqs: [4]\n", "not [4]"),
        ("max_num_seqs: null\n", "not nothing"),
        ("api_key:\n", "not empty"),
        ("enable_metrics: 'true'\n", "true or false"),
        ("enable_metrics: 1\n", "true or false"),
        ("served_model_name: 7\n", "put it in quotes"),
        ("revision: 1234567\n", "put it in quotes"),
        ("api_key: ['']\n", "not empty"),
        ("hf_overrides: text\n", "a JSON object"),
        ("port: 1\nport: 2\n", "twice, in line 1 and in line 2"),
        ("memory:\n  block_size: 16\n", "not grouped"),
        ("- port\n", "name: value"),
        ("just text\n", "name: value"),
        ("port: [1\n", "not valid YAML"),
        ("port: 1\n\tx: 2\n", "not valid YAML"),
        ("port: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, part: str) -> None:
    assert part in mistake_in_file(tmp_path, text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing.yaml cannot be read: No such file"):
        resolve_file(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe4\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        resolve_file(tmp_path / "latin.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"model: \x00\n")
    with pytest.raises(ConfigError, match=r"binary.yaml"):
        resolve_file(tmp_path / "binary.yaml")


def test_a_wrong_api_key_is_not_repeated(tmp_path: Path) -> None:
    assert "123456" not in mistake_in_file(tmp_path, "api_key: 123456\n")


def test_an_unknown_keyword_argument_is_named() -> None:
    with pytest.raises(ConfigError, match=r"max-seqs \(argument max_seqs\)"):
        resolve_values({"max_seqs": 4})


def test_a_command_that_needs_a_model_says_so() -> None:
    require_model(resolved("some/model"))
    with pytest.raises(ConfigError, match="Name a model"):
        require_model(resolved("--api-key", "key", "some/model"))


def test_old_names_do_not_hide_a_wrong_value() -> None:
    with pytest.raises(ConfigError, match=re.escape("worker-use-ray must be true or false")):
        resolved(PAGEBOX_WORKER_USE_RAY="perhaps")
