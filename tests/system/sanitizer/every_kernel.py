"""A pytest plugin for runs under compute-sanitizer: fewer tests, but every kernel.

Of the unit tests those marked gpu, which take large inputs, are left out. The run fails if a kernel was never launched.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    large = [item for item in items if item.get_closest_marker("gpu") and item.path.parent != Path(__file__).parent]
    config.hook.pytest_deselected(items=large)
    items[:] = [item for item in items if item not in large]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.option.keyword or session.config.option.collectonly:
        return
    unseen = [name for name, launched in kernels() if not launched]
    if unseen:
        print(f"\nnever launched: {', '.join(unseen)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def kernels() -> Iterator[tuple[str, bool]]:
    """Each compiled kernel of the project, and whether it was launched."""
    from triton.runtime.jit import JITFunction

    from appliance_kernels import triton_kernels

    for info in pkgutil.iter_modules(triton_kernels.__path__, f"{triton_kernels.__name__}."):
        for name, value in vars(importlib.import_module(info.name)).items():
            ours = isinstance(value, JITFunction) and name.endswith("kernel") and value.fn.__module__ == info.name
            if ours:
                yield f"{info.name.rpartition('.')[2]}.{name}", any(cache[0] for cache in value.device_caches.values())
