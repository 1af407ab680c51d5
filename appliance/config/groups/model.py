"""Which model is served, and how its files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.config.declaration import setting


@dataclass(frozen=True)
class ModelSettings:
    """Which model is served, and how its files are read."""

    model: str = setting(
        "",
        purpose="The model to serve: a local folder in Hugging Face's layout, a GGUF file, or a Hugging Face id. "
        "`pagebox serve` and the other commands that load a model also take it as their first argument.",
        memory="Decides everything: the weights take parameters × bytes per parameter, and the KV cache takes what is "
        "left.",
        throughput="Decides everything: a decode step reads every active weight once, so tokens/s of one stream is at "
        "most memory bandwidth ÷ weight bytes.",
        typical="/var/lib/pagebox/models/NAME, or an id such as HuggingFaceTB/SmolLM2-135M-Instruct.",
        formula="weight bytes = parameters × 2 (bfloat16, float16) or × 4 (float32)",
        when_unset="No model: commands that load one refuse to start.",
    )
    tokenizer: str | None = setting(
        None,
        purpose="Folder or Hugging Face id of the tokenizer, when it is not the model's own. Ids of another "
        "vocabulary produce nonsense silently, so set it only for a tokenizer made for this model.",
        typical="Unset.",
        when_unset="The tokenizer in the model's folder.",
    )
    revision: str | None = setting(
        None,
        purpose="Branch, tag or commit of the model on Hugging Face. Pin a commit in production, or a restart may "
        "load different weights. Only for a model given by its id: a local folder has no revisions.",
        typical="A 40-digit commit.",
        when_unset="The repository's default branch.",
    )
    tokenizer_mode: Literal["auto", "slow"] = setting(
        "auto",
        purpose="auto uses the compiled (Rust) tokenizer where the model has one; slow forces the Python one, to find "
        "out whether the two disagree.",
        throughput="slow takes many times as long for each prompt, in the server process.",
        typical="auto.",
    )
    trust_remote_code: bool = setting(
        False,
        purpose="Let transformers run Python code that lies in the model's folder, for tokenizers and configurations "
        "that need it. Refused unless the model is a local folder, so that nobody runs code they could not have "
        "read. Model code itself is never run: the engine has its own.",
        typical="Off.",
    )
    max_model_len: int | Literal["auto"] | None = setting(
        None,
        purpose="Longest context, prompt and generated tokens together. Longer requests are refused with a 400. auto "
        "takes the longest, up to the model's own, of which one request fits into the KV cache.",
        memory="Sets what one request may occupy in the KV cache; a start fails when even one request of this length "
        "does not fit. It reserves nothing in advance: blocks are taken as tokens come.",
        throughput="No direct effect; one very long request leaves less cache for others, so fewer run together.",
        typical="4096 to 32768 for chat, the model's own for long documents.",
        formula="KV bytes of one full request = max-model-len × 2 × layers × KV heads × head size × bytes per element",
        when_unset="The model's own (max_position_embeddings of its config.json).",
        minimum=2,
        unit="tokens",
    )
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = setting(
        "auto",
        purpose="Number format of weights, activations and KV cache. auto takes the one that the model was saved in, "
        "except that a 16-bit model is served on a CPU in bfloat16 where the processor has instructions for it "
        "(AVX-512 BF16 or AMX) and in float32 where it has not, and that a float32 model is served on a GPU in "
        "bfloat16.",
        memory="float32 takes twice the memory of the other two, for weights and for KV cache.",
        throughput="A 16-bit format is about twice as fast where the hardware has it, as decoding is bound by reading "
        "memory; a CPU without bfloat16 instructions is much faster in float32.",
        typical="auto; float32 to compare tokens with a reference.",
        formula="bytes per element: 2 for float16 and bfloat16, 4 for float32",
    )
    quantization: Literal["awq", "gptq", "bitsandbytes", "fp8", "squeezellm"] | None = setting(
        None,
        purpose="Method by which the weights are, or are to be, quantized.",
        memory="4-bit methods take about 0.55 bytes per parameter, fp8 about 1, instead of 2.",
        throughput="Faster decoding at small batches, where reading weights is the limit; little or no gain in "
        "prefill.",
        typical="Unset.",
        when_unset="As the model's own config.json says; none where it says nothing.",
        not_built="No quantization method is built yet; serve the unquantized model.",
    )
    load_format: Literal["auto", "safetensors", "pt", "npcache", "gguf", "dummy"] = setting(
        "auto",
        purpose="Format of the weight files. auto looks for safetensors, then GGUF, then pt. npcache keeps a NumPy "
        "copy of pt files beside them for the next start. dummy fills the model with random numbers, to measure "
        "without weights.",
        memory="While loading: safetensors and GGUF are mapped and read tensor by tensor; pt holds one whole file in "
        "memory.",
        throughput="No effect once loaded; safetensors starts fastest.",
        typical="auto.",
    )
    download_dir: str | None = setting(
        None,
        purpose="Folder that models given by a Hugging Face id are downloaded to.",
        typical="/var/lib/pagebox/models.",
        when_unset="Hugging Face's own cache folder ($HF_HOME, or ~/.cache/huggingface).",
    )
    hf_overrides: Mapping[str, Any] | None = setting(
        None,
        purpose='JSON object of values that replace those of the model\'s config.json, for example {"rope_scaling": '
        '{"rope_type": "yarn", "factor": 4.0}}. A wrong value loads and produces nonsense.',
        typical="Unset.",
        when_unset="config.json as it is.",
    )
    seed: int | None = setting(
        None,
        purpose="Start of the random numbers from which requests without a seed of their own get one, and of dummy "
        "weights. A request's own seed always makes it repeatable; this one makes a whole run repeatable, provided "
        "that the requests arrive in the same order.",
        typical="Unset; any number for benchmarks and bug reports.",
        when_unset="Different random numbers at each start.",
        minimum=0,
        maximum=2**63 - 1,
    )
    served_model_name: tuple[str, ...] = setting(
        (),
        purpose="Names under which clients may ask for the model; the first is the one in replies and in the metrics' "
        "model_name. A request for any other name is a 404.",
        typical="One short name that outlives the exact model, for example chat.",
        when_unset="The model as it was given (the folder or id).",
    )
    skip_tokenizer_init: bool = setting(
        False,
        purpose="Serve token ids only: prompts must be token ids, replies carry no text, stop strings and chat are "
        "refused.",
        memory="Saves the tokenizer in the server process, tens of MB.",
        throughput="Saves tokenizing and detokenizing in the server; the engine is not affected.",
        typical="Off; on for a client with its own tokenizer.",
    )
