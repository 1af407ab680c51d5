"""Our folder `kernels/` never stands in for Hugging Face's package `kernels`, which transformers imports if it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

ROOT = Path(__file__).parents[3]

# As much of the package as importing a model from transformers touches: classes, and functions that return decorators.
THEIRS = """
def _unchanged(*args, **kwargs):
    return lambda decorated: decorated
use_kernel_forward_from_hub = use_kernel_func_from_hub = use_kernelized_func = _unchanged
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
"""
PROGRAM = """
import importlib.util
import transformers
from transformers.utils import is_kernels_available
from transformers import LlamaForCausalLM
import appliance_kernels.metadata
spec = importlib.util.find_spec("kernels")
print(is_kernels_available(), None if spec is None else spec.origin)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a distribution `kernels` is installed, of a version that transformers accepts."""
    site = tmp_path_factory.mktemp("site")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text(THEIRS)
    info = site / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    (info / "RECORD").write_text("kernels/__init__.py,,\n")
    return site


def run(*paths: Path) -> list[str]:
    """What PROGRAM prints in the repository's root, which `python -c` puts first on the path, before `paths`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_transformers_finds_no_kernels_package_in_the_repository() -> None:
    assert run() == ["False", "None"]


def test_transformers_finds_their_package_where_it_is_installed(site: Path) -> None:
    assert run(site) == ["True", str(site / "kernels" / "__init__.py")]


def test_the_folder_has_no_init_file() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "with it the folder would shadow their package"
