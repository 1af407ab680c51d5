"""docs/lifecycle.md is what `pagebox trace --markdown` says today."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from appliance.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"
MODEL = "SmolLM2-135M-Instruct"
TIME = re.compile(r" *\d+\.\d ms")


def test_the_demo_model_lives_the_life_that_the_page_tells(
    demo_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same events in the same order, with the same tokens, blocks and slots."""
    for name in os.environ:
        if name.startswith("PAGEBOX_"):
            monkeypatch.delenv(name)
    page = PAGE.read_text(encoding="utf-8")
    [command] = [line for line in page.splitlines() if line.startswith("$ pagebox trace")]
    words = shlex.split(command.removeprefix("$ pagebox"))
    assert main([str(demo_model) if word == MODEL else word for word in words]) == 0
    told = capsys.readouterr().out.replace(str(demo_model), MODEL).replace(demo_model.name, MODEL)
    fresh = f"the page is out of date; write it anew: {command.removeprefix('$ ')} > docs/lifecycle.md"
    assert TIME.sub("", told) == TIME.sub("", page), fresh
