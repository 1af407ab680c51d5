"""Which class runs which architecture."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.models.causal_lm import CausalLM
from appliance.models.gemma3 import Gemma3ForCausalLM
from appliance.models.llama import LlamaForCausalLM
from appliance.models.mistral import MistralForCausalLM
from appliance.models.qwen2 import Qwen2ForCausalLM
from appliance.models.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: dict[str, type[CausalLM]] = {
    "Gemma3ForCausalLM": Gemma3ForCausalLM,
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": MistralForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


class UnsupportedModelError(ValueError):
    """The model asks for something that no class here computes."""


def model_class(architectures: Sequence[str] | None) -> type[CausalLM]:
    """The class for the `architectures` of a config.json; UnsupportedModelError if there is none."""
    supported = f"supported: {', '.join(ARCHITECTURES)}"
    if not architectures:
        raise UnsupportedModelError(f'config.json names no architecture (its field "architectures"); {supported}')
    if "Gemma3ForConditionalGeneration" in architectures:
        raise UnsupportedModelError(
            "this Gemma 3 checkpoint (Gemma3ForConditionalGeneration) has an image encoder, which is not supported; "
            "use a text-only checkpoint (Gemma3ForCausalLM)"
        )
    for name in architectures:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnsupportedModelError(f"the architecture {', '.join(architectures)} is not supported; {supported}")
