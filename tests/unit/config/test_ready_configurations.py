"""packaging/configs/*.yaml: each is loaded as it stands, and says nothing that would be so without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.cli.main import main
from appliance.config import resolve_file
from appliance.config.catalog import catalog, value_of
from appliance.config.combinations import DEFAULT_ORIGIN
from appliance.front.description import Layout, machine_front
from appliance.front.local_nginx import LocalNginx
from appliance.front.render import render

FILES = sorted((Path(__file__).parents[3] / "packaging" / "configs").glob("*.yaml"))

each = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_there_is_one_for_each_use() -> None:
    assert [file.stem for file in FILES] == ["batch", "chat", "long-context", "multi-gpu", "multi-tenant"]


@each
def test_config_check_finds_no_mistake_and_has_nothing_to_add(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", str(file)]) == 0
    told = capsys.readouterr()
    assert "no mistakes" in told.out and told.err == ""


@each
def test_every_line_changes_something(file: Path) -> None:
    resolved = resolve_file(file)
    given = [setting for setting in catalog().values() if resolved.provenance[setting.name] != DEFAULT_ORIGIN]
    assert len(given) > 5
    assert [setting.title for setting in given if value_of(resolved.settings, setting) == setting.default] == []


@each
def test_nginx_is_rendered_from_the_same_file(file: Path) -> None:
    settings = resolve_file(file).settings
    text = render(machine_front(settings), Layout(), LocalNginx())
    assert 'server "unix:/run/pagebox/server.sock" max_fails=0;' in text
    assert f"client_max_body_size {settings.server.max_request_bytes};" in text
