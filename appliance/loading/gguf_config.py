"""A config.json made of a GGUF file's metadata, for models that come as that file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.loading.errors import ModelLoadError
from appliance.loading.gguf_format import dequantized, open_reader, read_field

FAMILIES = {  # general.architecture -> (model_type, architecture); Mistral models are "llama" there
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
REQUIRED = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
FREQUENCY_FACTORS = "rope_freqs.weight"  # what Llama 3.1's scaling divides each inverse frequency by
GEMMA_27B_LAYERS = 62  # the one Gemma 3 whose query scale is not its head size; GGUF does not record it


def metadata_config(paths: list[Path]) -> dict[str, Any]:
    """The fields of a config.json. `paths` are the model's files, the metadata in the first.

    Raises ModelLoadError if a field is missing that cannot be derived.
    """
    path = paths[0]
    readers = [open_reader(path) for path in paths]
    reader = readers[0]
    architecture = read_field(reader, "general.architecture", path)
    if architecture not in FAMILIES:
        raise ModelLoadError(
            f"{path}: the GGUF architecture {architecture!r} is not supported; supported: {', '.join(FAMILIES)}"
        )

    def field(name: str, default: Any = None) -> Any:
        return read_field(reader, f"{architecture}.{name}", path, default)

    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    config = {ours: read_field(reader, f"{architecture}.{theirs}", path) for theirs, ours in REQUIRED.items()}
    heads = config["num_attention_heads"]
    config["model_type"], name = FAMILIES[architecture]
    config["architectures"] = [name]
    config["num_key_value_heads"] = field("attention.head_count_kv", heads)
    config["head_dim"] = field("attention.key_length", config["hidden_size"] // heads)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    if "token_embd.weight" in tensors:
        config["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    # Quantized weights deserve no more than 16 bits.
    sample = tensors.get("blk.0.attn_q.weight")
    if sample is not None:
        config["dtype"] = {"F32": "float32", "F16": "float16"}.get(sample.tensor_type.name, "bfloat16")
    for token in ("bos", "eos"):
        config[f"{token}_token_id"] = read_field(reader, f"tokenizer.ggml.{token}_token_id", path, -1)
        if config[f"{token}_token_id"] == -1:
            config[f"{token}_token_id"] = None
    config["rope_theta"] = field("rope.freq_base", 10000.0)
    if FREQUENCY_FACTORS in tensors:
        factors = dequantized(tensors[FREQUENCY_FACTORS], path).tolist()
        config["rope_scaling"] = {"rope_type": "frequency_factors", "factors": factors}
    elif (scaling := field("rope.scaling.type", "none")) != "none":
        config["rope_scaling"] = {"rope_type": scaling, "factor": field("rope.scaling.factor", 1.0)}
        if scaling == "yarn":
            original = field("rope.scaling.original_context_length", config["max_position_embeddings"])
            config["rope_scaling"]["original_max_position_embeddings"] = original
    if architecture == "gemma3":
        is_27b = config["num_hidden_layers"] == GEMMA_27B_LAYERS
        config["query_pre_attn_scalar"] = config["hidden_size"] // heads if is_27b else config["head_dim"]
        config["sliding_window"] = field("attention.sliding_window")
    return config
