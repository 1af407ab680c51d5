"""The model's configuration: config.json (or a GGUF file's metadata), with the overrides of the settings applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from appliance.loading import gguf_format
from appliance.loading.errors import ModelLoadError
from appliance.loading.gguf_config import metadata_config
from appliance.models.registry import UnsupportedModelError, model_class


def load_config(location: Path, overrides: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The configuration of the model at `location` (a folder or a GGUF file) as transformers understands it.

    Both ways of writing rotary parameters (`rope_theta` with `rope_scaling`, and `rope_parameters`) come out as
    `rope_parameters`. Raises ModelLoadError, also for an architecture that is not supported.
    """
    values = _override(_read(location), overrides or {})
    if values.get("quantization_config"):
        method = values["quantization_config"].get("quant_method", "unknown method")
        raise ModelLoadError(f"{location}: the weights are quantized ({method}), which is not supported yet")
    if values.get("use_bidirectional_attention"):
        raise ModelLoadError(f"{location}: a model with bidirectional attention embeds text, it cannot generate any")
    try:
        model_class(values.get("architectures"))
    except UnsupportedModelError as error:
        raise ModelLoadError(f"{location}: {error}") from error
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ModelLoadError(f"{location}: config.json has the unknown model_type {model_type!r}")
    try:
        return CONFIG_MAPPING[model_type].from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise ModelLoadError(f"{location}: config.json is not valid: {error}") from error


def _read(location: Path) -> dict[str, Any]:
    path = location / "config.json" if location.is_dir() else location.parent / "config.json"
    if path.is_file():
        try:
            values = json.loads(path.read_bytes())
        except ValueError as error:
            raise ModelLoadError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise ModelLoadError(f"{path}: not a JSON object")
        return values
    gguf_paths = gguf_format.find(location)
    if gguf_paths:
        return metadata_config(gguf_paths)
    raise ModelLoadError(f"{location}: no config.json (nor a GGUF file) there; is it a model's folder?")


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`overrides` win; objects are merged field by field. `rope_scaling`, the older name, adds to `rope_parameters`
    where the file has that: transformers would forget the base frequency otherwise."""
    merged = dict(values)
    for name, value in overrides.items():
        key = "rope_parameters" if name == "rope_scaling" and merged.get("rope_parameters") else name
        old = merged.get(key)
        is_object = isinstance(old, dict) and isinstance(value, Mapping)
        merged[key] = _override(old, value) if is_object else _plain(value)
    return merged


def _plain(value: Any) -> Any:
    """Read-only mappings of the settings as the dicts that transformers wants."""
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value
