"""Where Triton's kernels run in the tests: compiled on a GPU, otherwise interpreted. Import this before any kernel."""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
