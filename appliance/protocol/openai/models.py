"""`/v1/models`."""

from __future__ import annotations

from typing import Literal

import msgspec


class ModelCard(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "pagebox"
    root: str  # the model as it was named on the command line
    parent: None = None
    max_model_len: int | None = None  # unknown until the engine is ready


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]
