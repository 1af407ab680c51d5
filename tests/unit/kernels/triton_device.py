"""Where Triton's kernels run in the tests: compiled on a GPU, otherwise interpreted (see `tests/conftest.py`)."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ALL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
