"""`pagebox serve` as a person runs it: a tiny random model, its engine process, HTTP from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from appliance.config import ModelSettings, Settings, settings_to_json
from appliance.engine.supervisor import SETTINGS_REFUSED

VOCAB_SIZE = 64
KEY = "secret"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and a tokenizer; the weights are made up (load-format dummy)."""
    folder = tmp_path_factory.mktemp("tiny")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@dataclass
class Served:
    process: subprocess.Popen[str]
    log: list[str]

    @property
    def url(self) -> str:
        eventually(lambda: self.found_url() is not None)
        return self.found_url() or ""

    def found_url(self) -> str | None:
        found = re.search(r"http://127\.0\.0\.1:\d+", "".join(self.log))
        return found and found.group()

    def engine(self) -> psutil.Process:
        eventually(lambda: bool(psutil.Process(self.process.pid).children()))
        return psutil.Process(self.process.pid).children()[0]

    def get(self, path: str) -> tuple[int, str]:
        return self._fetch(urllib.request.Request(self.url + path))

    def complete(self, **fields: Any) -> tuple[int, str]:
        body = json.dumps({"model": "tiny", "prompt": "w1 w2", "temperature": 0, "ignore_eos": True, **fields})
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        return self._fetch(urllib.request.Request(self.url + "/v1/completions", body.encode(), headers))

    def is_ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def _fetch(self, request: urllib.request.Request) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def start(model: Path, *flags: str) -> Served:
    command = [sys.executable, "-m", "appliance.cli.main", "serve", str(model), "--port", "0", "--load-format", "dummy"]
    command += ["--kv-cache-memory", "16MiB", "--served-model-name", "tiny", "--api-key", KEY]
    command += ["--api-server-count", "1", *flags]  # also where a GPU would make it more
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    served = Served(process, [])
    assert process.stderr is not None
    threading.Thread(target=served.log.extend, args=(process.stderr,), daemon=True).start()
    return served


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    running = start(tiny_model)
    yield running
    running.process.kill()
    running.process.wait()


def test_http_is_up_while_the_model_loads_and_ready_once_it_decodes(served: Served) -> None:
    assert served.get("/livez")[0] == 200
    status, body = served.get("/readyz")
    assert status == 503
    assert "not ready" in body
    eventually(served.is_ready)
    status, body = served.complete(max_tokens=5)
    assert status == 200
    assert json.loads(body)["usage"]["completion_tokens"] == 5


def test_a_killed_engine_ends_the_running_request_with_an_error_and_comes_back(served: Served) -> None:
    eventually(served.is_ready)
    outcome: list[tuple[int, str]] = []
    caller = threading.Thread(target=lambda: outcome.append(served.complete(max_tokens=8000)))
    caller.start()
    eventually(lambda: re.search(r"num_requests_running\{.*\} 1", metrics(served)) is not None)
    engine = served.engine()
    engine.kill()
    caller.join(30)
    status, body = outcome[0]
    assert status in (500, 502, 503)
    assert "engine stopped" in json.loads(body)["error"]["message"]
    assert not served.is_ready()
    eventually(served.is_ready)
    assert served.engine().pid != engine.pid
    assert served.complete(max_tokens=2)[0] == 200


def test_sigterm_stops_server_and_engine_cleanly(served: Served) -> None:
    eventually(served.is_ready)
    engine = served.engine()
    folder = Path(engine.cmdline()[engine.cmdline().index("--socket") + 1]).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()
    assert "Traceback" not in "".join(served.log)


def test_an_engine_does_not_outlive_its_server(tiny_model: Path) -> None:
    orphaned = start(tiny_model)
    engine = orphaned.engine()
    eventually(lambda: "appliance.engine.process" in " ".join(engine.cmdline()))
    os.kill(orphaned.process.pid, signal.SIGKILL)
    orphaned.process.wait()
    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 10)


def test_a_port_in_use_and_a_wrong_flag_are_sentences(tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = start(tiny_model, "--port", str(taken.getsockname()[1]))
        assert busy.process.wait(30) == 1
    eventually(lambda: any("cannot listen on 127.0.0.1" in line for line in busy.log))
    assert "Traceback" not in "".join(busy.log)
    wrong = start(tiny_model, "--max-num-seq", "3")
    assert wrong.process.wait(30) == 2


def test_a_model_folder_that_does_not_exist_is_one_sentence_before_anything_starts(tmp_path: Path) -> None:
    missing = start(tmp_path / "nope")
    assert missing.process.wait(30) == 2
    eventually(lambda: bool(missing.log))
    (line,) = missing.log
    assert line.startswith(f"pagebox serve: The model folder {tmp_path / 'nope'} does not exist; ")


def test_an_engine_refuses_settings_whose_model_folder_does_not_exist(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    settings.write_bytes(settings_to_json(Settings(model=ModelSettings(model=str(tmp_path / "nope")))))
    command = [sys.executable, "-m", "appliance.engine.process", "--socket", str(tmp_path / "s")]
    ended = subprocess.run([*command, "--settings", str(settings)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == SETTINGS_REFUSED
    assert "does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr


def metrics(served: Served) -> str:
    request = urllib.request.Request(served.url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())
