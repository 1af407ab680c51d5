"""The first token of an engine: proof that it can serve before it says so."""

from __future__ import annotations

import time

from appliance.engine.core import EngineCore
from appliance.engine.startup_errors import StartupError
from appliance.protocol.sampling_params import SamplingParams
from appliance.protocol.wire import AddRequest


def warm_up(core: EngineCore) -> None:
    """Run a short request through scheduler and model to its end. Raises `StartupError` when that fails.

    Two tokens: the first comes from the prefill, the second from a decode step.
    """
    sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, seed=0)
    refusal = core.add(AddRequest("warm-up", [0], sampling, arrival_time=time.time()))
    deltas = [refusal] if refusal is not None else []
    while core.has_work():
        deltas += core.step()
    last = deltas[-1] if deltas else None
    if last is None or last.finish_reason != "length":
        reason = "no token came" if last is None else (last.error or f"it ended with {last.finish_reason}")
        raise StartupError(f"The engine could not decode a first token: {reason}")
    core.reset_prefix_cache()
