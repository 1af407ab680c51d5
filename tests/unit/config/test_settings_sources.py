"""Flags beat the environment, which beats files, which beat defaults; and each is written in its own way."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import resolve_file, resolve_values
from tests.unit.config.command_line import resolved


def test_flags_beat_the_environment_which_beats_files_which_beat_defaults(tmp_path: Path) -> None:
    file = tmp_path / "pagebox.yaml"
    file.write_text("max_num_seqs: 10\nport: 9001\ndtype: float32\n")
    result = resolved("--config", str(file), "--max-num-seqs", "30", PAGEBOX_MAX_NUM_SEQS="20", PAGEBOX_PORT="9002")
    assert result.settings.scheduling.max_num_seqs == 30
    assert result.settings.server.port == 9002
    assert result.settings.model.dtype == "float32"
    assert result.settings.server.host == "127.0.0.1"
    assert result.provenance["max_num_seqs"] == "flag --max-num-seqs"
    assert result.provenance["port"] == "environment variable PAGEBOX_PORT"
    assert result.provenance["dtype"] == f"{file}:3"
    assert result.provenance["host"] == "default"


def test_drop_ins_are_read_in_order_and_the_later_wins(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "pagebox.yaml").write_text("port: 1\nmax_num_seqs: 1\nmax_log_len: 1\n")
    (tmp_path / "conf.d" / "20-b.yaml").write_text("port: 3\n")
    (tmp_path / "conf.d" / "10-a.yaml").write_text("port: 2\nmax-num-seqs: 2\n")
    (tmp_path / "conf.d" / "note.txt").write_text("port: 4\n")
    settings = resolve_file(tmp_path / "pagebox.yaml").settings
    assert (settings.server.port, settings.scheduling.max_num_seqs, settings.server.max_log_len) == (3, 2, 1)


def test_the_environment_can_name_the_file_and_the_flag_beats_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("port: 1\n")
    (tmp_path / "b.yaml").write_text("port: 2\n")
    assert resolved(PAGEBOX_CONFIG=str(tmp_path / "a.yaml")).settings.server.port == 1
    both = resolved("--config", str(tmp_path / "b.yaml"), PAGEBOX_CONFIG=str(tmp_path / "a.yaml"))
    assert both.settings.server.port == 2


def test_an_empty_file_gives_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert set(resolve_file(tmp_path / "empty.yaml").provenance.values()) == {"default"}


def test_an_empty_variable_counts_as_unset_and_other_variables_are_left_alone() -> None:
    result = resolved(PAGEBOX_MAX_NUM_SEQS="", PATH="/bin", HOME="/root")
    assert set(result.provenance.values()) == {"default"}


def test_the_model_is_the_first_argument_or_a_flag() -> None:
    assert resolved("org/name", "--port", "1").settings.model.model == "org/name"
    assert resolved("--port", "1", "org/name").settings.model.model == "org/name"
    assert resolved("--model", "org/name").settings.model.model == "org/name"
    assert resolved("org/name", PAGEBOX_MODEL="other").settings.model.model == "org/name"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--enable-prefix-caching"], True),
        (["--no-enable-prefix-caching"], False),
        (["--enable-prefix-caching=false"], False),
        (["--enable_prefix_caching=Off"], False),
        (["--no-enable-prefix-caching", "--enable_prefix_caching=1"], True),
    ],
)
def test_a_switch_is_written_as_a_bare_flag_or_with_a_value(words: list[str], expected: bool) -> None:
    result = resolved(*words, "some/model", PAGEBOX_ENABLE_PREFIX_CACHING="no")
    assert result.settings.memory.enable_prefix_caching is expected
    assert result.settings.model.model == "some/model"


def test_a_switch_in_the_environment_takes_the_usual_words() -> None:
    assert resolved(PAGEBOX_ENABLE_METRICS="off").settings.server.enable_metrics is False
    assert resolved(PAGEBOX_DISABLE_LOG_STATS="TRUE").settings.server.disable_log_stats is True


def test_underscores_in_a_flag_do_not_touch_its_value() -> None:
    settings = resolved("--served_model_name=my_model", "--max_num_seqs", "8").settings
    assert settings.model.served_model_name == ("my_model",)
    assert settings.scheduling.max_num_seqs == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GiB", 4 * 2**30), ("512MB", 512 * 10**6), ("1.5 gib", 3 * 2**29), ("100", 100), ("7kB", 7000), ("9B", 9)],
)
def test_sizes_take_units(text: str, expected: int, tmp_path: Path) -> None:
    assert resolved("--kv-cache-memory", text).settings.memory.kv_cache_memory == expected
    assert resolved(PAGEBOX_KV_CACHE_MEMORY=text).settings.memory.kv_cache_memory == expected
    (tmp_path / "c.yaml").write_text(f"kv_cache_memory: {text}\n")
    assert resolve_file(tmp_path / "c.yaml").settings.memory.kv_cache_memory == expected


@pytest.mark.parametrize(("text", "expected"), [("4096", 4096), ("32k", 32000), ("32K", 32768), ("auto", "auto")])
def test_token_counts_take_k_and_the_case_matters(text: str, expected: object) -> None:
    assert resolved("--max-model-len", text).settings.model.max_model_len == expected


def test_several_values_are_repeated_listed_or_joined(tmp_path: Path) -> None:
    assert resolved("--api-key", "a", "b", "--api-key", "c").settings.server.api_key == ("a", "b", "c")
    assert resolved(PAGEBOX_API_KEY="a,b").settings.server.api_key == ("a", "b")
    assert resolved(PAGEBOX_API_KEY='["a,b", "c"]').settings.server.api_key == ("a,b", "c")
    assert resolved("--allowed-origins", '["*"]').settings.server.allowed_origins == ("*",)
    (tmp_path / "c.yaml").write_text("api_key:\n- a\n- b\nserved_model_name: one\n")
    settings = resolve_file(tmp_path / "c.yaml").settings
    assert settings.server.api_key == ("a", "b")
    assert settings.model.served_model_name == ("one",)


def test_a_source_replaces_the_list_of_a_weaker_one() -> None:
    assert resolved("--api-key", "flag", PAGEBOX_API_KEY="environment").settings.server.api_key == ("flag",)


def test_objects_are_json_in_text_and_mappings_in_yaml(tmp_path: Path) -> None:
    expected = {"rope_scaling": {"factor": 4.0}}
    text = '{"rope_scaling": {"factor": 4.0}}'
    assert resolved("--hf-overrides", text).settings.model.hf_overrides == expected
    assert resolved(PAGEBOX_HF_OVERRIDES=text).settings.model.hf_overrides == expected
    (tmp_path / "c.yaml").write_text("hf_overrides:\n  rope_scaling:\n    factor: 4.0\n")
    assert resolve_file(tmp_path / "c.yaml").settings.model.hf_overrides == expected


def test_null_in_yaml_unsets_what_may_be_unset(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("max_model_len: null\ntokenizer: ~\n")
    settings = resolve_file(tmp_path / "c.yaml").settings
    assert settings.model.max_model_len is None
    assert settings.model.tokenizer is None


def test_keyword_arguments_are_checked_like_everything_else() -> None:
    settings = resolve_values({"model": "m", "max_model_len": 64, "swap_space": 0}).settings
    assert (settings.model.max_model_len, settings.memory.swap_space) == (64, 0.0)


@pytest.mark.parametrize("name", ["max-paddings", "max-num-on-the-fly-batching", "num-scheduler-steps"])
def test_old_names_are_accepted_with_one_line(name: str, tmp_path: Path) -> None:
    variable = "PAGEBOX_" + name.replace("-", "_").upper()
    (tmp_path / "c.yaml").write_text(f"{name}: 8\n")
    for result in (resolved(f"--{name}", "8"), resolved(**{variable: "8"}), resolve_file(tmp_path / "c.yaml")):
        assert set(result.provenance.values()) == {"default"}
        (notice,) = result.notices
        assert name in notice and "meaningless" in notice and "\n" not in notice


def test_worker_use_ray_switched_off_is_accepted_with_one_line() -> None:
    (notice,) = resolved("--worker-use-ray=false").notices
    assert "old name of distributed-executor-backend" in notice
