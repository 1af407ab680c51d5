"""`pagebox`, `pagebox config …` and docs/configuration.md."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.cli.main import COMMANDS, main
from appliance.config.catalog import catalog
from appliance.config.reference import reference
from appliance.version import __version__

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "transformers", "aiohttp", "numpy")


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in catalog().values():
        monkeypatch.delenv(setting.variable, raising=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["version"], ["config", "explain", "port"]])
def test_a_light_command_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from appliance.cli.main import main\n"
        f"try: code = main({arguments!r})\n"
        "except SystemExit as done: code = done.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.splitlines()[-1] == "[] 0"


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {command.name} " in out and command.help in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_exists(command: object) -> None:
    module = importlib.import_module(command.module)  # type: ignore[attr-defined]
    assert callable(module.add_arguments) and callable(module.run)


def test_without_a_command_the_overview_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("usage: pagebox")


def test_an_unknown_command_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["confg", "show"]) == 2
    assert "unknown command confg; did you mean config?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"pagebox {__version__}\n"


@pytest.mark.parametrize("name", ["max-num-seqs", "max_num_seqs", "PAGEBOX_MAX_NUM_SEQS"])
def test_explain_tells_all_facts_of_a_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", name]) == 0
    out = capsys.readouterr().out
    for fact in ("Purpose:", "256", "Memory:", "Throughput:", "Typical:", "Formula:", "PAGEBOX_MAX_NUM_SEQS"):
        assert fact in out


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("max-num-sequences", "did you mean max-num-seqs?"),
        ("max-paddings", "meaningless"),
        ("worker-use-ray", "distributed-executor-backend"),
    ],
)
def test_explain_of_no_setting_says_why(name: str, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", name]) == 2
    assert part in capsys.readouterr().err


def test_show_says_where_each_value_comes_from_and_hides_keys(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("dtype: float32\n")
    monkeypatch.setenv("PAGEBOX_PORT", "9000")
    arguments = ["config", "show", "m", "--config", str(tmp_path / "c.yaml"), "--api-key", "secret1", "secret2"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("  ")}
    assert lines["port"].split(maxsplit=1) == ["9000", "environment variable PAGEBOX_PORT"]
    assert lines["dtype"].split() == ["float32", f"{tmp_path}/c.yaml:1"]
    assert lines["max-num-seqs"].split() == ["256", "default"]
    assert set(lines) == {setting.title for setting in catalog().values()}
    assert "secret" not in out


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "m", "--json", "--api-key", "secret", "--hf-overrides", '{"a": 1}']) == 0
    out = capsys.readouterr().out
    values = json.loads(out)
    assert values["hf_overrides"] == {"value": {"a": 1}, "from": "flag --hf-overrides"}
    assert values["api_key"]["value"] == ["***"]
    assert values["port"] == {"value": 8000, "from": "default"}
    assert "secret" not in out


def test_notices_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--json", "--max-paddings", "3"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "max-paddings" in captured.err


def test_check_accepts_a_good_file_and_refuses_a_bad_drop_in(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "pagebox.yaml"
    file.write_text("port: 1\n")
    assert main(["config", "check", str(file)]) == 0
    assert "settings given: 1" in capsys.readouterr().out
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.yaml").write_text("prot: 1\n")
    assert main(["config", "check", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "10.yaml:1" in captured.err and "did you mean port?" in captured.err


def test_a_reader_that_stops_early_gets_no_traceback() -> None:
    command = f"{sys.executable} -m appliance.cli.main config reference | head -n 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout == "# Configuration\n"
    assert result.stderr == ""


def test_the_help_of_settings_is_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", "show", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for part in ("Model:", "Parallelism:", "Scheduling:", "Features:", "--max-num-seqs N", "NOT BUILT YET"):
        assert part in out


def test_the_configuration_reference_is_up_to_date() -> None:
    stale = "run `pagebox config reference > docs/configuration.md`"
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == reference(), stale


def test_the_reference_has_a_section_for_every_setting() -> None:
    text = reference()
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == [
        setting.title for setting in catalog().values()
    ]
