"""Matrix products with a weight that stays the same over many calls, as in a sampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear


def product(weight: torch.Tensor, bias: torch.Tensor | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x weight^T + bias for [..., in] x, [out, in] weight and [out] bias.

    On a CPU in float32, oneDNN computes it from a reordered copy of the weight, with the operations that torch.compile
    uses for frozen weights. Products of few rows then wait less for memory.
    """
    if not packs(weight):
        return lambda x: linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def packs(weight: torch.Tensor) -> bool:
    """True if `product` makes a copy of the weight."""
    return weight.device.type == "cpu" and weight.dtype is torch.float32 and torch.backends.mkldnn.is_available()
