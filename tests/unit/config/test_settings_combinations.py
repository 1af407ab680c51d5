"""Settings that are each possible and impossible together are refused, with the origin of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config import ConfigError
from tests.unit.config.command_line import resolved


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--block-size", "24"], ["block-size", "power of two", "24"]),
        (
            ["--kv-cache-memory", "1GiB", "--gpu-memory-utilization", "0.9"],
            ["flag --kv-cache-memory", "flag --gpu-memory-utilization", "leave one out"],
        ),
        (["--max-num-batched-tokens", "128"], ["max-num-batched-tokens = 128", "max-num-seqs = 256 (default)"]),
        (
            ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "512", "--max-model-len", "513"],
            ["enable-chunked-prefill", "512", "513"],
        ),
        (
            ["--no-enable-chunked-prefill", "--long-prefill-token-threshold", "64"],
            ["long-prefill-token-threshold", "enable-chunked-prefill"],
        ),
        (
            ["--enforce-eager", "--enable-cuda-graph"],
            ["enable-cuda-graph (flag --enable-cuda-graph)", "enforce-eager (flag --enforce-eager)", "leave one out"],
        ),
        (["--uds", "/run/x.sock", "--host", "::"], ["uds (flag --uds)", "host (flag --host)"]),
        (["--uds", "/run/x.sock", "--port", "8000"], ["uds (flag --uds)", "port (flag --port)"]),
        (
            ["--host", "0.0.0.0"],
            ["host = 0.0.0.0 (flag --host)", "no API keys", "api-key", "api-keys-file", "allow-unauthenticated"],
        ),
        (["--host", ""], ["host"]),
        (["--host", "gpu.example.com"], ["host = gpu.example.com"]),
        (["--ssl-keyfile", "key.pem"], ["ssl-keyfile (flag --ssl-keyfile) needs ssl-certfile"]),
        (["--ssl-certfile", "cert.pem"], ["ssl-certfile (flag --ssl-certfile) needs ssl-keyfile"]),
        (["--root-path", "llm"], ["root-path", "slash", "'llm'"]),
        (["--root-path", "/llm/"], ["root-path", "slash"]),
        (["org/name", "--trust-remote-code"], ["trust-remote-code", "org/name is not a local folder"]),
        (["--skip-tokenizer-init", "--tokenizer", "t"], ["tokenizer (flag --tokenizer)", "skip-tokenizer-init"]),
        (["--skip-tokenizer-init", "--chat-template", "t"], ["chat-template", "skip-tokenizer-init"]),
    ],
)
def test_an_impossible_combination_is_one_sentence(words: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(*words)
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ["--block-size", "8", "--kv-cache-memory", "1GiB"],
        ["--host", "0.0.0.0", "--api-key", "k"],
        ["--host", "::", "--api-keys-file", "keys.yaml"],
        ["--host", "0.0.0.0", "--allow-unauthenticated"],
        ["--host", "127.0.0.2"],
        ["--host", "::1"],
        ["--host", "localhost"],
        ["--uds", "server.sock"],
        ["--max-num-batched-tokens", "4", "--max-num-seqs", "4"],
        ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "512", "--max-model-len", "512"],
        ["--no-enable-chunked-prefill", "--max-model-len", "auto"],
        ["--enforce-eager", "--cuda-graph-sizes", "8", "--max-context-len-to-capture", "8192"],
        ["--enforce-eager", "--no-enable-cuda-graph"],
        ["--uds", "/run/x.sock"],
        ["--ssl-keyfile", "key.pem", "--ssl-certfile", "cert.pem"],
        ["--root-path", "/llm"],
        ["--skip-tokenizer-init"],
        ["org/name", "--revision", "main"],
    ],
)
def test_their_possible_neighbours_are_accepted(words: list[str]) -> None:
    resolved(*words)


def test_remote_code_is_accepted_in_a_folder_and_a_revision_is_not(tmp_path: Path) -> None:
    resolved(str(tmp_path), "--trust-remote-code")
    with pytest.raises(ConfigError, match=r"revision .* is on this machine"):
        resolved(str(tmp_path), "--revision", "main")


def test_what_an_override_makes_possible_is_accepted() -> None:
    assert resolved("--max-num-batched-tokens", "512", PAGEBOX_MAX_NUM_BATCHED_TOKENS="1").settings
