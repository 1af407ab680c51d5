"""From a checkpoint into a model: names and shapes are compared first, then each tensor is copied into its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from appliance.loading.checkpoint import CheckpointFile
from appliance.loading.errors import ModelLoadError
from appliance.models.causal_lm import CausalLM
from appliance.models.layers.base import WeightSlot

# Tensors that some checkpoints carry and that the model computes for itself.
IGNORED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|rope_freqs\.weight|attention\.masked_bias)$")
TIED_HEAD = "lm_head.weight"  # a second copy of the embedding, in some checkpoints of models that tie the two

Progress = Callable[[float], None]


def fill_model(
    model: CausalLM,
    files: Sequence[CheckpointFile],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> None:
    """Give every weight of `model` its memory and its value. `progress` gets the fraction done, 0 to 1."""
    slots = dict(model.weight_slots())
    _check(slots, files)
    total = sum(slot.num_elements for slot in slots.values())
    done = 0
    wanted = frozenset(slots)
    for file in files:
        for name, tensor in file.read(wanted):
            slot = slots[name]
            slot.materialize(dtype, device)
            slot.fill(tensor)
            done += slot.num_elements
            progress(done / total)


def finalize_model(model: CausalLM) -> None:
    """Let each layer bring its weights into the form that runs fastest; each old form is freed before the next."""
    for layer in model.all_layers():
        layer.finalize_weights()


def _check(slots: dict[str, WeightSlot], files: Sequence[CheckpointFile]) -> None:
    found: dict[str, CheckpointFile] = {}
    for file in files:
        for name, shape in file.shapes.items():
            if name in found:
                raise ModelLoadError(f"tensor {name} is in two files, {found[name].path} and {file.path}; remove one")
            found[name] = file
            if name not in slots:
                if not IGNORED.search(name) and name != TIED_HEAD:
                    raise ModelLoadError(
                        f"{file.path}: tensor {name} has no place in this architecture; does config.json belong to "
                        f"these weights?"
                    )
            elif shape != slots[name].shape:
                raise ModelLoadError(
                    f"{file.path}: tensor {name} has shape {list(shape)}, but config.json makes it "
                    f"{list(slots[name].shape)}"
                )
    missing = [name for name in slots if name not in found]
    if missing:
        searched = ", ".join(str(file.path) for file in files[:3]) + (", …" if len(files) > 3 else "")
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise ModelLoadError(f"tensor {missing[0]}{others} is missing from {searched}")
