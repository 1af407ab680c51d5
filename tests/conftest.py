"""What all tests share: the real model, and which tests this machine can run."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

# Without a GPU, Triton's kernels are interpreted. Its own library reads this when it is imported, so before any test
# file imports anything that imports it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from appliance.cli.demo_model import pull_demo

# A busy machine makes any example slow; no test here is about time.
hypothesis.settings.register_profile("pagebox", deadline=None)
hypothesis.settings.load_profile("pagebox")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in bfloat16, fetched into the user's cache the first time."""
    return pull_demo(dtype="bfloat16")


@pytest.fixture(scope="session")
def demo_model_fp32() -> Path:
    """The same model in float32, for comparisons token by token."""
    return pull_demo(dtype="float32")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not Path("/proc/driver/nvidia/version").exists():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and this machine has none")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
