"""Every setting of the product is declared, says what it does, survives the way to the engine, and refuses honestly."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from appliance.config import ConfigError, Settings, resolve_values, settings_from_json, settings_to_json
from appliance.config.catalog import Setting, catalog, value_of
from appliance.config.values import converted
from tests.unit.config.command_line import resolved

NOT_BUILT: dict[str, Any] = {
    "quantization": "awq",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "data_parallel_size": 2,
    "decode_context_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "cpu_offload_gb": 1,
    "enable_sleep_mode": True,
    "compilation_config": {"level": 3},
    "attention_backend": "triton",
    "enable_auto_tool_choice": True,
    "tool_call_parser": "hermes",
    "reasoning_parser": "qwen3",
    "enable_lora": True,
    "max_loras": 2,
    "max_lora_rank": 32,
    "max_cpu_loras": 2,
    "lora_modules": ["sql=adapters/sql"],
    "speculative_model": "small",
    "num_speculative_tokens": 4,
    "speculative_config": {"method": "ngram"},
    "guided_decoding_backend": "xgrammar",
    "limit_mm_per_prompt": {"image": 1},
    "image_input_type": "pixel_values",
    "image_token_id": 32000,
    "image_input_shape": "1,3,336,336",
}

BUILT: dict[str, Any] = {
    "model": "m",
    "tokenizer": "t",
    "revision": "main",
    "tokenizer_mode": "slow",
    "max_model_len": 128,
    "dtype": "float16",
    "load_format": "dummy",
    "download_dir": "models",
    "hf_overrides": {"num_hidden_layers": 2, "rope_scaling": {"factor": 2.0}},
    "seed": 7,
    "served_model_name": ["a", "b"],
    "kv_cache_memory": "1GiB",
    "block_size": 64,
    "kv_cache_dtype": "fp8",
    "swap_space": 4,
    "enable_prefix_caching": False,
    "num_gpu_blocks_override": 12,
    "max_num_seqs": 3,
    "max_num_batched_tokens": "2k",
    "scheduling_policy": "fair",
    "long_prefill_token_threshold": 16,
    "preemption_mode": "swap",
    "max_num_queued_reqs": 0,
    "max_num_queued_tokens": 10,
    "async_scheduling": False,
    "enforce_eager": True,
    "enable_cuda_graph": False,
    "max_context_len_to_capture": 8192,
    "cuda_graph_sizes": [1, 2],
    "batch_invariant": True,
    "host": "0.0.0.0",
    "admin_socket": "/tmp/admin.sock",
    "engine_socket": "/tmp/engine.sock",
    "port": 0,
    "api_server_count": 3,
    "api_key": ["k1", "k2"],
    "api_keys_file": "keys.yaml",
    "api_keys_pepper": "pepper",
    "allow_unauthenticated": True,
    "audit_log": "audit.jsonl",
    "ssl_keyfile": "k.pem",
    "ssl_certfile": "c.pem",
    "root_path": "/llm",
    "chat_template": "t.jinja",
    "response_role": "bot",
    "allowed_origins": ["*"],
    "enable_metrics": False,
    "disable_log_stats": True,
    "disable_log_requests": True,
    "max_log_len": 10,
    "log_format": "json",
    "drain_timeout": 1.5,
    "request_timeout": 0,
    "max_request_bytes": "1MiB",
    "disable_sliding_window": True,
    "on_spot_interruption": ["drain"],
    "on_rebalance_recommendation": ["drain", "notify"],
    "on_scheduled_maintenance": ["notify"],
    "on_auto_scaling_termination": [],
    "on_gpu_failure": ["mark-unhealthy"],
    "fatal_xids": [79],
    "notice_margin": 20,
    "maintenance_lead_time": 60,
    "target_groups": ["chat"],
    "lifecycle_hooks": ["drain"],
    "webhook_url": ["https://chat.example.com/hook"],
    "sns_topic_arn": "arn:aws:sns:eu-central-1:123456789012:notices",
    "imds_endpoint": "http://127.0.0.1:1338",
    "watcher_state_dir": "state",
    "watcher_textfile": "watcher.prom",
    "watcher_metrics_port": 9464,
}

# Not to be given together with those above.
EXCLUSIVE: dict[str, Any] = {
    "gpu_memory_utilization": 0.5,
    "uds": "/run/server.sock",
    "enable_chunked_prefill": False,
    "skip_tokenizer_init": True,
    "trust_remote_code": True,
}


def test_every_setting_is_in_exactly_one_list_of_these_tests() -> None:
    listed = [*NOT_BUILT, *BUILT, *EXCLUSIVE]
    assert sorted(listed) == sorted(catalog())


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_yet_is_refused_with_its_sentence(name: str) -> None:
    setting = catalog()[name]
    with pytest.raises(ConfigError) as caught:
        resolve_values({name: NOT_BUILT[name]})
    message = str(caught.value)
    assert message.startswith(f"{setting.title} = ")
    assert f"(argument {name}) is refused. " in message
    assert message.endswith(setting.declaration.not_built)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_yet_is_accepted_at_its_default(name: str) -> None:
    setting = catalog()[name]
    if setting.default is not None:
        assert value_of(resolve_values({name: setting.default}).settings, setting) == setting.default


def test_ray_is_refused_under_its_old_name_too() -> None:
    with pytest.raises(ConfigError, match=r"distributed-executor-backend = ray \(flag --worker-use-ray\) is refused"):
        resolved("--worker-use-ray")


def test_everything_that_is_built_can_be_set_and_survives_the_file_to_the_engine() -> None:
    resolution = resolve_values(BUILT)
    for name in BUILT:
        assert value_of(resolution.settings, catalog()[name]) != catalog()[name].default
        assert resolution.provenance[name] == f"argument {name}"
    assert settings_from_json(settings_to_json(resolution.settings)) == resolution.settings
    assert settings_from_json(settings_to_json(Settings())) == Settings()


@pytest.mark.parametrize("name", sorted(set(EXCLUSIVE) - {"trust_remote_code"}))
def test_the_exclusive_ones_can_be_set_too(name: str) -> None:
    settings = resolve_values({name: EXCLUSIVE[name]}).settings
    assert value_of(settings, catalog()[name]) == EXCLUSIVE[name]
    assert settings_from_json(settings_to_json(settings)) == settings


def test_a_damaged_file_to_the_engine_is_not_accepted() -> None:
    with pytest.raises(msgspec.ValidationError):
        settings_from_json(b'{"server": {"port": "x"}}')


@pytest.mark.parametrize("setting", catalog().values(), ids=lambda setting: setting.name)
def test_every_declaration_is_complete_and_its_default_fits_it(setting: Setting) -> None:
    declared = setting.declaration
    for text in (declared.purpose, declared.memory, declared.throughput, declared.typical):
        assert text.endswith((".", ")")), text
    assert not declared.not_built or declared.not_built.endswith(".")
    assert bool(declared.when_unset) == (setting.default in (None, (), "")), "an unset default says what it comes to"
    if setting.default not in (None, ()):
        assert converted(setting, setting.default, "default") == setting.default


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().server.port = 1  # type: ignore[misc]
