"""The product as a whole: `pagebox serve` as its own processes, real weights, the OpenAI client as it comes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KEY = "sk-of-this-test"
START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url: str, path: str) -> tuple[int, dict]:
    """Status and JSON body; status 0 when nobody listens yet."""
    try:
        with urllib.request.urlopen(url + path, timeout=5) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except OSError:
        return 0, {}


@pytest.fixture(scope="module")
def url(demo_model_fp32: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "appliance.cli.main", "serve", str(demo_model_fp32)]
    command += ["--port", str(port), "--served-model-name", "demo", "--kv-cache-memory", "1GiB"]
    server = subprocess.Popen(command, env=os.environ | {"PAGEBOX_API_KEY": KEY}, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        phases = []
        deadline = time.monotonic() + START_SECONDS
        while get(url, "/readyz")[0] != 200:
            assert server.poll() is None and time.monotonic() < deadline, "the server did not become ready"
            status, body = get(url, "/startupz")
            if status == 503:
                assert get(url, "/livez")[0] == 200, "alive from the first answer on"
                phases.append(body["phase"])
            time.sleep(0.05)
        assert phases, "it answered before it was ready"
        yield url
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "Traceback" not in log
        assert "Where does the sun rise" not in log, "prompts are not logged"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)


QUESTION = [{"role": "user", "content": "Where does the sun rise?"}]


@pytest.fixture(scope="module")
def answer(demo_model_fp32: Path) -> str:
    """What transformers answers to the question, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model_fp32)
    model = AutoModelForCausalLM.from_pretrained(demo_model_fp32, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, do_sample=False, max_new_tokens=24, pad_token_id=0)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_chat_gets_the_answer_that_transformers_gives(client, answer):
    reply = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=24)
    assert reply.choices[0].message.content == answer
    assert reply.usage.completion_tokens <= 24


def test_a_stream_says_the_same_piece_by_piece(client, answer):
    stream = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == answer
    assert len([text for text in texts if text]) > 5
    assert chunks[-1].usage.prompt_tokens > 0


async def test_the_async_client_runs_many_at_once_and_each_gets_its_own_tokens(url, answer):
    import asyncio

    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0) as client:

        def ask(seed: int | None):
            choice = {"temperature": 0} if seed is None else {"temperature": 1.0, "seed": seed}
            return client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=24, **choice)

        replies = await asyncio.gather(*(ask(seed) for seed in [None, 1, 2, 1, None, 3]))
    texts = [reply.choices[0].message.content for reply in replies]
    assert texts[0] == texts[4] == answer
    assert texts[1] == texts[3], "the same seed, in the same crowd"
    assert len({texts[1], texts[2], texts[5]}) == 3


def test_stop_strings_logprobs_and_n_work_on_real_text(client, answer):
    word = answer.split()[3]
    stopped = client.completions.create(
        model="demo", prompt="The sun rises in the", temperature=0, max_tokens=16, stop=["."], logprobs=2, n=2, seed=7
    )
    assert len(stopped.choices) == 2
    for choice in stopped.choices:
        assert "." not in choice.text
        assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
        assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs)
    chat = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, max_tokens=24, stop=[word])
    assert chat.choices[0].message.content == answer[: answer.index(word)]
    assert chat.choices[0].finish_reason == "stop"


def test_a_wrong_key_and_a_context_too_long_are_the_clients_errors(url, client):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url + "/v1", api_key="sk-wrong", max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo", prompt="word " * 9000, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"


def gauges(url: str) -> list[float]:
    request = urllib.request.Request(url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    metrics = urllib.request.urlopen(request).read().decode()
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc{")
    found = [float(value) for key, value in values.items() if key.startswith(names)]
    assert len(found) == len(names)
    return found


def test_nothing_is_held_when_all_is_answered(url, client):
    deadline = time.monotonic() + 10  # an engine without work reports with its heartbeat, once a second
    while gauges(url) != [0.0, 0.0, 0.0]:
        assert time.monotonic() < deadline, gauges(url)
        time.sleep(0.1)
