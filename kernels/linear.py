"""Matrix products with a weight that is laid out once, for the processor that it runs on."""

from __future__ import annotations

import torch
import torch.nn.functional as F


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
    if isinstance(weight, PackedLinearWeight):
        result = torch.ops.mkldnn._linear_pointwise(x, weight.data, bias, "none", [], "")
    elif out is not None and bias is None:
        return torch.mm(x, weight.t(), out=out)
    else:
        result = F.linear(x, weight, bias)
    return result if out is None else out.copy_(result)
