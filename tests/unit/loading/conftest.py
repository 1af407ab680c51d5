"""Tiny matrices gain nothing from threads, and wait for each other when the machine is busy."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
