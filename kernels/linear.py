"""Matrix products with a weight that is laid out once, for the processor that it runs on."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F

# Products of so few rows are our own: with one row always, with two where the weight is small. Measured: beyond, cuBLAS
# is as fast or faster.
SKINNY_ROWS = 2
SMALL_WEIGHT = 8 * 2**20  # elements


class PackedLinearWeight:
    """A bfloat16 weight [N, K] in oneDNN's blocked layout.

    The packed product streams weights at up to twice the rate of `F.linear`, which repacks at every call
    (docs/performance.md); the result is the same to the bit.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.shape = weight.shape
        self.data = torch.ops.mkldnn._reorder_linear_weight(weight)


class InvariantWeight:
    """A weight [N, K] on a GPU whose products give a row the same bits whatever the other rows are."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Compiles the kernels; `bias` is that of the products to come."""
        # imports Triton, which a machine without a GPU need not have
        from appliance_kernels.triton_kernels.matmul_invariant import compile_tiles, invariant_linear

        compile_tiles(weight, bias)
        self.shape = weight.shape
        self.data = weight
        self.product = invariant_linear


def is_skinny(x: torch.Tensor, weight: object) -> bool:
    """Whether a product with x [T, K] is one of few rows, on a GPU: there the way of the weights from memory, and the
    launches around it, are all that counts."""
    if not (x.is_cuda and isinstance(weight, torch.Tensor) and 0 < x.shape[0] <= SKINNY_ROWS):
        return False
    fits = weight.dtype == x.dtype and weight.is_contiguous()
    return fits and (x.shape[0] == 1 or weight.numel() <= SMALL_WEIGHT)


def pack_linear_weight(weight: torch.Tensor) -> torch.Tensor | PackedLinearWeight:
    """`weight` [N, K] in the fastest form that `linear` takes on its device: packed, or as it is."""
    packable = (
        weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return PackedLinearWeight(weight) if packable else weight


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | PackedLinearWeight | InvariantWeight,
    bias: torch.Tensor | None = None,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, plus bias [N]; returns [T, N] in x's dtype, in `out` if it is given."""
    if isinstance(weight, InvariantWeight):
        return weight.product(x, weight.data, bias, out=out)
    if is_skinny(x, weight):
        return _skinny().skinny_linear(x, weight, bias, out=out, overlap=_skinny().supports_overlap(x.device))
    if isinstance(weight, PackedLinearWeight):
        result = torch.ops.mkldnn._linear_pointwise(x, weight.data, bias, "none", [], "")
    elif out is not None and bias is None:
        return torch.mm(x, weight.t(), out=out)
    else:
        result = F.linear(x, weight, bias)
    return result if out is None else out.copy_(result)


@cache
def _skinny() -> ModuleType:
    # imports Triton, which a machine without a GPU need not have
    from appliance_kernels.triton_kernels import skinny_linear

    return skinny_linear
