"""What goes beyond serving one plain text model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.config.declaration import setting

_NO_LORA = "LoRA is not built yet."
_NO_SPECULATION = "Speculative decoding is not built yet."
_NO_VISION = "No vision-language model is built yet; the value would come from the model's own config.json."


@dataclass(frozen=True)
class FeatureSettings:
    """What goes beyond serving one plain text model."""

    enable_lora: bool = setting(
        False,
        purpose="Serve LoRA adapters of the model beside it, each under its own name.",
        memory="Reserves room for max-loras adapters on the device.",
        throughput="Steps are somewhat slower when adapters are in the batch.",
        typical="Off.",
        not_built=_NO_LORA,
    )
    max_loras: int = setting(
        1,
        purpose="Different adapters in one batch.",
        memory="Each takes the room of one adapter of max-lora-rank on the device.",
        throughput="Requests of further adapters wait.",
        typical="1 to 16.",
        formula="adapter bytes ≈ 2 × max-lora-rank × (input + output size, summed over adapted matrices)",
        minimum=1,
        not_built=_NO_LORA,
    )
    max_lora_rank: int = setting(
        16,
        purpose="Highest rank of an adapter.",
        memory="Room is reserved for this rank whatever an adapter has.",
        throughput="Grows slowly with the rank.",
        typical="The highest rank among your adapters: 8 to 64.",
        minimum=1,
        not_built=_NO_LORA,
    )
    max_cpu_loras: int | None = setting(
        None,
        purpose="Adapters kept in host memory, ready to move to the device.",
        memory="Host memory, one adapter each.",
        throughput="An adapter that is not there is read from disk first.",
        typical="The number of adapters in daily use.",
        when_unset="max-loras.",
        minimum=1,
        not_built=_NO_LORA,
    )
    lora_modules: tuple[str, ...] = setting(
        (),
        purpose="Adapters to load at the start, each NAME=FOLDER.",
        typical="Unset.",
        when_unset="None.",
        not_built=_NO_LORA,
    )
    speculative_model: str | None = setting(
        None,
        purpose="Small model that drafts tokens which the served model checks in one step.",
        memory="The draft model's weights and its own KV cache.",
        throughput="Faster for few streams, as a check costs about as much as one token; a loss at large batches.",
        typical="A model of the same family and vocabulary, a tenth of the size.",
        when_unset="No drafts.",
        not_built=_NO_SPECULATION,
    )
    num_speculative_tokens: int | None = setting(
        None,
        purpose="Tokens drafted before each check.",
        throughput="More pay off only while most are accepted.",
        typical="3 to 5.",
        formula="expected tokens per step = (1 − a^(k+1)) ÷ (1 − a), for k drafts, each accepted with probability a",
        when_unset="No drafts.",
        minimum=1,
        not_built=_NO_SPECULATION,
    )
    speculative_config: Mapping[str, Any] | None = setting(
        None,
        purpose="JSON object with all options of speculative decoding, for methods that need no draft model (n-gram).",
        typical="Unset.",
        when_unset="No drafts.",
        not_built=_NO_SPECULATION,
    )
    guided_decoding_backend: Literal["auto", "guidance", "xgrammar"] = setting(
        "auto",
        purpose="Library that turns a JSON schema, regex or grammar into a mask of allowed tokens.",
        throughput="A mask of the vocabulary is computed for each such sequence and step.",
        typical="auto.",
        not_built="Structured output is not built yet.",
    )
    disable_sliding_window: bool = setting(
        False,
        purpose="Serve a sliding-window model with full attention and a context no longer than its window, where both "
        "are the same.",
        memory="max-model-len is at most the window, so requests take less cache.",
        typical="Off.",
    )
    limit_mm_per_prompt: Mapping[str, int] | None = setting(
        None,
        purpose='JSON object of the most images, videos or audio pieces in one prompt, for example {"image": 4}.',
        memory="The start measures activations with this many.",
        typical="Unset.",
        when_unset="One of each kind that the model takes.",
        not_built=_NO_VISION,
    )
    image_input_type: Literal["pixel_values", "image_features"] | None = setting(
        None,
        purpose="Old way to say whether images enter as pixels or as features; read from the model's own config.json.",
        typical="Unset.",
        when_unset="From the model.",
        not_built=_NO_VISION,
    )
    image_token_id: int | None = setting(
        None,
        purpose="Old way to name the id of the image placeholder token; read from the model's own config.json.",
        typical="Unset.",
        when_unset="From the model.",
        minimum=0,
        not_built=_NO_VISION,
    )
    image_input_shape: str | None = setting(
        None,
        purpose="Old way to give the shape of image input, for example 1,3,336,336; read from the model's own "
        "config.json.",
        typical="Unset.",
        when_unset="From the model.",
        not_built=_NO_VISION,
    )
