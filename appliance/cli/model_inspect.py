"""`pagebox model inspect`: what a model is and what it costs, from its configuration; no weight is read."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_WEIGHT_FILES = ("*.safetensors", "*.gguf", "*.bin")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a model folder or GGUF file")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(options: argparse.Namespace) -> int:
    from appliance.loading.errors import ModelLoadError
    from appliance.loading.model_config import load_config
    from appliance.models.facts import model_facts

    if not options.model.exists():
        print(f"pagebox model inspect: {options.model} does not exist.", file=sys.stderr)
        return 1
    try:
        facts = model_facts(load_config(options.model))
    except ModelLoadError as error:
        print(f"pagebox model inspect: {error}.", file=sys.stderr)
        return 1
    report = {
        "architecture": facts.architecture,
        "parameters": facts.num_parameters,
        "weight_bytes_16_bit": facts.weight_bytes(2),
        "weight_bytes_on_disk": _bytes_on_disk(options.model),
        "kv_bytes_per_token_16_bit": facts.kv_bytes_per_token(2),
        "max_model_len": facts.max_model_len,
        "vocab_size": facts.vocab_size,
        "layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "attention_heads": facts.num_heads,
        "kv_heads": facts.num_kv_heads,
        "head_dim": facts.head_dim,
    }
    if options.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' '):<28}{f'{value:,}' if isinstance(value, int) else value}")
    return 0


def _bytes_on_disk(model: Path) -> int:
    files = [model] if model.is_file() else [file for pattern in _WEIGHT_FILES for file in model.glob(pattern)]
    return sum(file.stat().st_size for file in files)
