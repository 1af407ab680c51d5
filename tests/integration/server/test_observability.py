"""Metrics, log lines, the API description."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.log_format import JsonFormatter
from tests.integration.server.harness import KEY, Server, eventually

CHAT = "/v1/chat/completions"
SECRET = "my-secret-prompt"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 9}

GAUGES = (
    *("num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason", "num_requests_swapped"),
    *("kv_cache_usage_perc", "gpu_cache_usage_perc", "cpu_cache_usage_perc", "cache_config_info"),
    *("avg_generation_throughput_toks_per_s", "avg_prompt_throughput_toks_per_s"),
)
COUNTERS = (
    *("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached"),
    *("generation_tokens", "request_success", "admission_rejections"),
)
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds"),
    *("e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"),
    *("request_decode_time_seconds", "request_inference_time_seconds", "request_prompt_tokens"),
    *("request_generation_tokens", "request_params_n", "request_params_max_tokens", "iteration_tokens_total"),
)


async def scrape(server: Server) -> dict[str, Any]:
    text = (await server.get("/metrics"))[1]
    return {family.name: family for family in text_string_to_metric_families(text)}


async def test_every_metric_has_its_name_type_and_labels(server: Server) -> None:
    await server.post(CHAT, BODY)
    await eventually(lambda: server.client.status.stats.steps >= 9)
    families = await scrape(server)
    for names, kind in ((GAUGES, "gauge"), (COUNTERS, "counter"), (HISTOGRAMS, "histogram")):
        for name in names:
            family = families[f"vllm:{name}"]
            assert family.type == kind, name
            for sample in family.samples:
                assert sample.labels["engine"] == "0", name
                assert name == "cache_config_info" or sample.labels["model_name"] == "null", name
                if kind == "histogram" and sample.name.endswith("_count"):
                    assert sample.value > 0, name
    for name in (
        "pagebox:engine_steps",
        "pagebox:kv_tokens_restored",
        "pagebox:engine_last_step_age_seconds",
        "pagebox:drain_state",
        "pagebox:drain_deadline_seconds",
        "pagebox:build_info",
        "pagebox:requests",
    ):
        assert name in families
    value = {s.name: s.value for f in families.values() for s in f.samples if not s.name.endswith("_bucket")}
    assert value["vllm:request_generation_tokens_sum"] == 9
    assert value["vllm:request_params_max_tokens_sum"] == 9
    assert value["vllm:generation_tokens_total"] == 9
    assert value["vllm:request_queue_time_seconds_sum"] == 0.001


async def test_series_with_a_reason_are_there_at_zero_before_anything_happens(server: Server) -> None:
    families = await scrape(server)
    for name, label, values in (
        ("admission_rejections", "reason", {"max_num_queued_reqs", "max_num_queued_tokens"}),
        ("request_success", "finished_reason", {"stop", "length", "abort", "error", "shed"}),
    ):
        samples = [s for s in families[f"vllm:{name}"].samples if s.name.endswith("_total")]
        assert {s.labels[label]: s.value for s in samples} == dict.fromkeys(values, 0), name


async def test_a_drain_is_in_the_metrics(start: Any) -> None:
    server: Server = await start(drain_timeout=60)

    async def drain() -> tuple[float, float]:
        families = await scrape(server)
        return tuple(families[f"pagebox:drain_{name}"].samples[0].value for name in ("state", "deadline_seconds"))

    assert await drain() == (0, 0)
    server.engine.hold = True
    running = asyncio.create_task(server.post(CHAT, BODY))
    await eventually(lambda: bool(server.engine.running))
    drained = asyncio.create_task(server.drain())
    await eventually(lambda: server.context.draining)
    state, left = await drain()
    assert state == 1
    assert 0 < left <= 60
    running.cancel()
    await drained


async def test_every_request_ends_in_exactly_one_outcome(start: Any) -> None:
    server: Server = await start(api_key=("sk-zero", KEY), request_timeout=0.3)
    await server.post(CHAT, BODY)
    await server.post(CHAT, {})
    await server.post(CHAT, {**BODY, "stream": True, "temperature": -1})
    server.engine.failing_first_tokens = {256}
    await server.post(CHAT, BODY)
    async with server.http.post(server.url + CHAT, json={**BODY, "stream": True}) as response:
        await response.read()
    server.engine.failing_first_tokens = set()
    server.engine.hold = True
    await server.post(CHAT, BODY)
    async with aiohttp.ClientSession() as session, session.post(server.url + CHAT, json=BODY) as response:
        assert response.status == 401
    gone = asyncio.create_task(server.post(CHAT, BODY))
    await eventually(lambda: bool(server.engine.running))
    gone.cancel()
    await server.nothing_is_left()
    for path in ("/livez", "/readyz", "/metrics"):
        await server.get(path)
    samples = (await scrape(server))["pagebox:requests"].samples
    counts = {(s.labels["outcome"], s.labels["key"]): s.value for s in samples if s.name.endswith("_total")}
    assert counts == {
        ("success", "key-1"): 1,
        ("client_error", "key-1"): 2,
        ("server_error", "key-1"): 2,
        ("timeout", "key-1"): 1,
        ("denied", ""): 1,
        ("disconnected", "key-1"): 1,
    }


async def test_no_secret_is_in_metrics_or_logs(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server: Server = await start(api_key=(KEY,))
    await server.post(CHAT, BODY)
    await server.post(CHAT, {**BODY, "wrong": SECRET})
    text = (await server.get("/metrics"))[1]
    for secret in (KEY, SECRET):
        assert secret not in text
        assert all(secret not in record.getMessage() for record in caplog.records)


async def test_each_request_has_one_log_line(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "appliance.server.request")
    server: Server = await start(api_key=(KEY,))
    await server.post(CHAT, BODY, headers={"X-Request-Id": "abc"})
    await server.post(CHAT, {**BODY, "stream": True, "n": 0}, headers={"X-Request-Id": "def"})
    await server.get("/livez")
    lines = [record for record in caplog.records if record.name == "appliance.server.request"]
    assert len(lines) == 2
    good, bad = (line.fields for line in lines)  # type: ignore[attr-defined]
    assert good["request_id"] == "abc"
    assert (good["route"], good["status"], good["outcome"], good["key"]) == (CHAT, 200, "success", "key-0")
    assert (good["completion_tokens"], good["cached_tokens"]) == (9, 3)
    assert good["prompt_tokens"] == len(server.engine.seen[0].prompt_token_ids)
    assert 0 <= good["ttft_ms"] <= good["total_ms"]
    assert (bad["request_id"], bad["status"], bad["outcome"]) == ("def", 400, "client_error")
    assert "request_id=abc" in lines[0].getMessage()
    line = json.loads(JsonFormatter().format(lines[0]))
    assert (line["request_id"], line["level"], line["route"]) == ("abc", "info", CHAT)


async def test_request_lines_can_be_switched_off_and_excerpts_on(start: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "appliance.server.request")
    server: Server = await start(max_log_len=9)
    await server.post(CHAT, BODY)
    assert caplog.records[-1].fields["prompt"] == "my-secret"  # type: ignore[attr-defined]
    caplog.clear()
    quiet: Server = await start(disable_log_requests=True)
    await quiet.post(CHAT, BODY)
    assert caplog.records == []


async def test_a_request_id_cannot_forge_a_log_line(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "appliance.server.request")
    await server.get("/version", headers={"X-Request-Id": "a status=200\tx"})
    assert caplog.records[-1].fields["request_id"] == "astatus=200x"  # type: ignore[attr-defined]


async def test_metrics_can_be_switched_off(start: Any) -> None:
    server: Server = await start(enable_metrics=False)
    assert (await server.get("/metrics"))[0] == 404


async def test_the_api_description_covers_every_route_and_every_field(server: Server) -> None:
    document = json.loads((await server.get("/openapi.json"))[1])
    registered = {
        (route.method.lower(), route.resource.canonical)
        for route in server.app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert described == registered
    chat = document["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "temperature", "top_k", "max_completion_tokens", "chat_template_kwargs"} <= chat.keys()
    assert json.dumps(document).count("#/components/schemas/") > 10


def test_the_server_imports_no_torch() -> None:
    code = (
        "import sys, appliance.server.serve; "
        "from tests.integration.server.byte_tokenizer import byte_tokenizer as b; "
        "t = b(); t.apply_chat_template([{'role': 'user', 'content': 'x'}]); t.decode([1]); "
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_throughput_is_measured_and_logged(
    start: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.server.stats_log.INTERVAL_SECONDS", 0.1)
    caplog.set_level(logging.INFO, "appliance.server.stats_log")
    server: Server = await start()
    server.engine.step_seconds = 0.01
    await server.post(CHAT, {**BODY, "max_tokens": 50})
    await eventually(lambda: any("running 1" in record.getMessage() for record in caplog.records))
    measured = server.context.metrics.collector
    await eventually(lambda: measured.generation_throughput == 0)  # idle again
    caplog.clear()
    await asyncio.sleep(0.3)
    assert caplog.records == []  # nothing happens, nothing is said
