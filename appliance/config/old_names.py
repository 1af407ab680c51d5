"""Settings of older servers that are still accepted, with a notice."""

from __future__ import annotations

from appliance.config.errors import ConfigError
from appliance.config.given import Given

MEANINGLESS = frozenset({"max_paddings", "max_num_on_the_fly_batching", "num_scheduler_steps"})
WORKER_USE_RAY = "worker_use_ray"
OLD_NAMES = MEANINGLESS | {WORKER_USE_RAY}


def translated(given: Given) -> tuple[Given | None, str]:
    """What an old name means now (None: nothing), and the one line that says so. `given.name` is in `OLD_NAMES`."""
    title = given.name.replace("_", "-")
    if given.name in MEANINGLESS:
        return None, f"{title} ({given.origin}) changes nothing: continuous batching makes it meaningless here."
    if not isinstance(given.value, bool):
        raise ConfigError(f"{title} must be true or false, not {given.value!r} ({given.origin}).")
    notice = f"{title} ({given.origin}) is the old name of distributed-executor-backend: ray; use that."
    return (Given("distributed_executor_backend", "ray", given.origin) if given.value else None), notice
