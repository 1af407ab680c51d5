"""Settings that are each possible, and impossible together."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path

from appliance.config.errors import ConfigError
from appliance.config.settings import Settings

DEFAULT_ORIGIN = "default"

Provenance = Mapping[str, str]


def check_combinations(settings: Settings, provenance: Provenance) -> None:
    """Raise ConfigError for the first impossible combination. Nothing is read but whether the model is a folder."""
    for rule in _RULES:
        problem = rule(settings, provenance)
        if problem:
            raise ConfigError(problem)


def _block_size(settings: Settings, provenance: Provenance) -> str:
    size = settings.memory.block_size
    if size is None or size & (size - 1) == 0:
        return ""
    return f"block-size must be a power of two from 8 to 256, not {size} ({provenance['block_size']})."


def _cache_size(settings: Settings, provenance: Provenance) -> str:
    if settings.memory.kv_cache_memory is None or not _is_given(provenance, "gpu_memory_utilization"):
        return ""
    return (
        f"kv-cache-memory ({provenance['kv_cache_memory']}) and gpu-memory-utilization "
        f"({provenance['gpu_memory_utilization']}) both set the size of the KV cache; leave one out."
    )


def _step_budget(settings: Settings, provenance: Provenance) -> str:
    budget, rows = settings.scheduling.max_num_batched_tokens, settings.scheduling.max_num_seqs
    if budget is None or budget >= rows:
        return ""
    return (
        f"max-num-batched-tokens = {budget} ({provenance['max_num_batched_tokens']}) must be at least max-num-seqs = "
        f"{rows} ({provenance['max_num_seqs']}), as each running sequence takes a token of every step."
    )


def _whole_prompts(settings: Settings, provenance: Provenance) -> str:
    budget, longest = settings.scheduling.max_num_batched_tokens, settings.model.max_model_len
    if (
        settings.scheduling.enable_chunked_prefill
        or budget is None
        or not isinstance(longest, int)
        or budget >= longest
    ):
        return ""
    return (
        f"Without enable-chunked-prefill ({provenance['enable_chunked_prefill']}) a step must hold the longest prompt: "
        f"max-num-batched-tokens = {budget} ({provenance['max_num_batched_tokens']}) must be at least max-model-len = "
        f"{longest} ({provenance['max_model_len']})."
    )


def _split_prompts(settings: Settings, provenance: Provenance) -> str:
    if settings.scheduling.enable_chunked_prefill or not settings.scheduling.long_prefill_token_threshold:
        return ""
    return (
        f"long-prefill-token-threshold ({provenance['long_prefill_token_threshold']}) splits prompts, which "
        f"enable-chunked-prefill = false ({provenance['enable_chunked_prefill']}) forbids; leave one out."
    )


def _eager_or_graphs(settings: Settings, provenance: Provenance) -> str:
    performance = settings.performance
    if not (performance.enforce_eager and performance.enable_cuda_graph and _is_given(provenance, "enable_cuda_graph")):
        return ""
    return (
        f"enable-cuda-graph ({provenance['enable_cuda_graph']}) asks for CUDA graphs, and enforce-eager "
        f"({provenance['enforce_eager']}) for none; leave one out."
    )


def _listening(settings: Settings, provenance: Provenance) -> str:
    if settings.server.uds is None:
        return ""
    for name in ("host", "port"):
        if _is_given(provenance, name):
            return f"The server listens at uds ({provenance['uds']}) or at {name} ({provenance[name]}), not at both."
    return ""


def _open_to_others(settings: Settings, provenance: Provenance) -> str:
    server = settings.server
    if server.uds is not None or server.has_keys or server.allow_unauthenticated or _is_loopback(server.host):
        return ""
    return (
        f"host = {server.host} ({provenance['host']}) lets other machines in, and no API keys are configured, so "
        "anybody there could use the model. Set api-key, or api-keys-file (`pagebox keys add NAME` makes one); or "
        "allow-unauthenticated, where something in front checks who calls."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name; whom it reaches is not known here
        return False


def _tls(settings: Settings, provenance: Provenance) -> str:
    has_key, has_certificate = settings.server.ssl_keyfile is not None, settings.server.ssl_certfile is not None
    if has_key == has_certificate:
        return ""
    given, missing = ("ssl_keyfile", "ssl-certfile") if has_key else ("ssl_certfile", "ssl-keyfile")
    return f"{given.replace('_', '-')} ({provenance[given]}) needs {missing} too: HTTPS takes a key and a certificate."


def _root_path(settings: Settings, provenance: Provenance) -> str:
    path = settings.server.root_path
    if not path or (path.startswith("/") and not path.endswith("/")):
        return ""
    return f"root-path must begin with a slash and not end with one, not {path!r} ({provenance['root_path']})."


def _remote_code(settings: Settings, provenance: Provenance) -> str:
    model = settings.model.model
    if not settings.model.trust_remote_code or not model or Path(model).expanduser().is_dir():
        return ""
    return (
        f"trust-remote-code ({provenance['trust_remote_code']}) is refused, as {model} is not a local folder: download "
        "the model, read its code, and serve the folder."
    )


def _revision(settings: Settings, provenance: Provenance) -> str:
    model = settings.model.model
    if settings.model.revision is None or not model or not Path(model).expanduser().exists():
        return ""
    return f"revision ({provenance['revision']}) is for models from Hugging Face; {model} is on this machine."


def _token_ids_only(settings: Settings, provenance: Provenance) -> str:
    if not settings.model.skip_tokenizer_init:
        return ""
    for name, value in (("tokenizer", settings.model.tokenizer), ("chat_template", settings.server.chat_template)):
        if value is not None:
            return (
                f"{name.replace('_', '-')} ({provenance[name]}) has no use with skip-tokenizer-init "
                f"({provenance['skip_tokenizer_init']}); leave one out."
            )
    return ""


def _is_given(provenance: Provenance, name: str) -> bool:
    return provenance[name] != DEFAULT_ORIGIN


_RULES: tuple[Callable[[Settings, Provenance], str], ...] = (
    _block_size,
    _cache_size,
    _step_budget,
    _whole_prompts,
    _split_prompts,
    _eager_or_graphs,
    _listening,
    _open_to_others,
    _tls,
    _root_path,
    _remote_code,
    _revision,
    _token_ids_only,
)
