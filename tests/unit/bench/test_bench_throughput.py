"""`pagebox bench throughput`: the counts of a run whose steps are known, and the command on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli.main import main
from tests.support.tiny_models import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama").save_pretrained(folder)
    return str(folder)


def bench(*words: str) -> int:
    return main(["bench", "throughput", "--kv-cache-memory", "4000000", *words])


def test_tokens_and_steps_are_counted(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--num-prompts", "6", "--input-len", "8", "--prefix-len", "4", "--output-len", "5", "--max-num-seqs", "3"]
    assert bench("--model", model, *shape, "--no-enable-prefix-caching", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_requests"], result["failed"]) == (6, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"], result["total_cached_tokens"]) == (72, 30, 0)
    # Three at a time, each one step for its prompt and first token, and four more: twice five steps.
    assert (result["steps"], result["mean_requests_per_step"], result["preemptions"]) == (10, 3.0, 0)
    assert result["mean_tokens_per_step"] == (72 + 24) / 10  # the last tokens are never computed with
    assert result["output_tokens_per_second"] == pytest.approx(30 / result["elapsed_time"])


def test_it_is_readable_too(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--model", model, "--num-prompts", "2", "--input-len", "4", "--output-len", "2") == 0
    assert "Output tokens             4" in capsys.readouterr().out


def test_lengths_that_cannot_fit_name_the_options(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--model", model, "--num-prompts", "2", "--input-len", "250", "--output-len", "20") == 1
    message = capsys.readouterr().err
    assert "270 tokens together, but the context is 256" in message
    assert "--input-len" in message


def test_a_model_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--model", "/no/such/model") != 0
    assert "/no/such/model" in capsys.readouterr().err
