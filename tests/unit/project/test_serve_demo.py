"""What `make serve` tells the person in front of it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import socket
from types import ModuleType

import pytest

from tests.unit.project.source_names import ROOT


@pytest.fixture(scope="module")
def serve_demo() -> ModuleType:
    """By its path: the folder packaging/ is no package, and its name is that of one."""
    spec = importlib.util.spec_from_file_location("serve_demo", ROOT / "packaging" / "serve_demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_curl_line_can_be_pasted_and_asks_the_demo_model_with_the_key(serve_demo: ModuleType) -> None:
    text = serve_demo.how_to_talk_to_it(8123, "sk-some-key")
    [line] = [line for line in text.splitlines() if line.startswith("curl ")]
    _, url, *options = shlex.split(line)
    assert url == "http://127.0.0.1:8123/v1/chat/completions"
    given = list(zip(options[::2], options[1::2], strict=True))
    assert ("-H", "Authorization: Bearer sk-some-key") in given
    assert ("-H", "Content-Type: application/json") in given
    [body] = [json.loads(value) for option, value in given if option == "-d"]
    assert body["model"] == serve_demo.NAME
    assert body["messages"][0]["role"] == "user"


def test_url_key_and_model_stand_on_lines_of_their_own(serve_demo: ModuleType) -> None:
    text = serve_demo.how_to_talk_to_it(8123, "sk-some-key")
    told = dict(re.findall(r"^  (\w+) +(\S+)$", text, re.MULTILINE))
    assert told == {"URL": "http://127.0.0.1:8123/v1", "Key": "sk-some-key", "Model": serve_demo.NAME}


def test_a_taken_port_ends_it_with_the_name_of_a_free_one(
    serve_demo: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((serve_demo.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert serve_demo.main("no-model", port) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"Port {port} of {serve_demo.HOST} is taken by another program.")
        match = re.search(r"(\d+) is free: make serve PORT=(\d+)$", told.strip())
        assert match is not None, told
        assert match[1] == match[2] != str(port)
        socket.create_server((serve_demo.HOST, int(match[1]))).close()  # it really is
