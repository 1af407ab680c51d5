"""pagebox: serve large language models from plain machines.

    from appliance import LLM, SamplingParams

`LLM` is imported on first use, so that importing this package (and with it the command line) imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.protocol.sampling_params import SamplingParams
from appliance.version import __version__

if TYPE_CHECKING:
    from appliance.engine.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from appliance.engine.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
