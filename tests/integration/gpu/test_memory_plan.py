"""What `pagebox plan` says of this machine's GPU is what an engine then measures on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

TOLERANCE = 0.03
LARGE = 10**9  # parts smaller than this may be off by more: they do not decide what fits
PARTS = ("weights", "activations", "cuda_graphs", "kv_cache", "state", "other", "free")

SMALL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
LIKE_8B = SMALL | {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}

# In a process of its own, so that what this one holds on the GPU is not counted.
START_AN_ENGINE = """
import json, logging, sys
from appliance.config import resolve_values
from appliance.engine.startup import build_core


class Keep(logging.Handler):
    def emit(self, record):
        if hasattr(record, "ledger"):
            print("LEDGER", json.dumps(record.ledger.as_json()), flush=True)


logging.basicConfig(level=logging.INFO, handlers=[Keep()])
build_core(resolve_values(json.loads(sys.argv[1])).settings, lambda phase, detail="", progress=None: None)
"""


def planned(settings: dict[str, Any]) -> dict[str, Any]:
    words = [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
        if word != "True"
    ]
    return json.loads(output_of("-m", "appliance.cli.main", "plan", *words, "--json"))


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    lines = output_of("-c", START_AN_ENGINE, json.dumps(settings)).splitlines()
    ledgers = [line.removeprefix("LEDGER ") for line in lines if line.startswith("LEDGER ")]
    assert len(ledgers) == 1, "the engine logs its ledger once"
    return json.loads(ledgers[0])


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=280, check=False
    )


def output_of(*words: str) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        pytest.param(SMALL, {}, id="small"),
        pytest.param(SMALL, {"kv_cache_memory": 3 * 2**30, "max_num_seqs": 32}, id="small-with-cache-size"),
        pytest.param(LIKE_8B, {}, id="8b"),
        pytest.param(
            LIKE_8B,
            {"max_num_batched_tokens": 32768, "max_num_seqs": 64, "max_model_len": 16384, "enforce_eager": True},
            id="8b-with-large-steps",
        ),
    ],
)
def test_the_plan_is_what_the_engine_measures(shape: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape))
    settings = {"model": str(tmp_path), "load_format": "dummy"} | settings
    plan, ledger = planned(settings), measured(settings)
    print("plan    ", plan, "\nmeasured", ledger)
    assert ledger["total"] == pytest.approx(plan["total"], rel=0.005)
    assert ledger["tokens"] == pytest.approx(plan["tokens"], rel=TOLERANCE)
    assert (ledger["max_model_len"], ledger["block_size"]) == (plan["max_model_len"], plan["block_size"])
    large = [part for part in PARTS if max(plan[part], ledger[part]) > LARGE]
    assert {part: ledger[part] for part in large} == pytest.approx({part: plan[part] for part in large}, rel=TOLERANCE)


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LIKE_8B | {"num_hidden_layers": 3200}))
    settings = {"model": str(tmp_path), "load_format": "dummy"}
    plan = run("-m", "appliance.cli.main", "plan", str(tmp_path))
    engine = run("-c", START_AN_ENGINE, json.dumps(settings))
    assert (plan.returncode, engine.returncode) == (1, 1)
    assert "The model does not fit" in plan.stderr
    assert "The model does not fit" in engine.stderr
