"""LoRA whose policy is the very model that its sampler gets: W + s B A, summed in float32 and rounded once.

The usual layer computes x W and s (x A) B apart, while a sampler gets the sum as one matrix. In bfloat16 the two are
different models: a small step of the adapter moves the first and is lost in the rounding of the second. Here both
compute with the rounded sum, and the rounding is dithered: every weight has its own threshold, fixed and uniform, so
that of a step of a hundredth of a unit in the last place one weight in a hundred moves a whole unit. Over a row of
weights the step arrives, as rounding to nearest would let it do only once it had grown to half a unit.

It is also less work: one matrix product forward instead of three, none of it in float32, and only x is kept for the
backward pass. The sum is made anew in every pass, which costs rank / tokens of the layer's own product.
"""

from __future__ import annotations

from functools import cache
from types import MethodType

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear
from transformers import PreTrainedModel

ADAPTER = "default"
GOLDEN = 40503  # 2^16 times 0.618, odd
ROW_SHIFT = 37


def add_lora(model: PreTrainedModel, rank: int, alpha: float) -> PeftModel:
    """`model` with an adapter on all linear layers but the head; B starts at 0."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    for layer in layers(wrapped):
        layer.forward, layer.frozen = MethodType(_forward, layer), None
    return wrapped


@torch.no_grad()
def merged(layer: LoraLayer) -> torch.Tensor:
    """[out, in] W + s B A in W's precision; W alone while the adapter is switched off. A 4-bit W is dequantised."""
    base = _base(layer)
    return base if layer.disable_adapters else rounded(_sum(layer, base), base.dtype)


@torch.no_grad()
def arrived(model: torch.nn.Module) -> float:
    """The share of the adapter's change that is in the rounded weights: <W' - W, s B A> / |s B A|^2."""
    moved = wanted = 0.0
    for layer in layers(model):
        base = _base(layer)
        exact = _sum(layer, base)
        change, exact = rounded(exact, base.dtype) - base.to(exact.dtype), exact - base
        moved += (change * exact).sum()
        wanted += exact.square().sum()
    return float(moved / wanted) if wanted > 0 else 1.0


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, columns] in `dtype`. To bfloat16 by a fixed dither: a number between two neighbours goes to each with the
    probability that makes the mean right, and one that bfloat16 has stays what it is."""
    if dtype is not torch.bfloat16:
        return exact.to(dtype)
    # A bfloat16 number is the upper half of a float32 one; the lower half is added a threshold below 2^16.
    bits = exact.view(torch.int32) + _thresholds(*exact.shape, exact.device)
    return bits.view(torch.int16)[:, 1::2].contiguous().view(dtype)  # the upper halves, on a little-endian machine


@cache
def _thresholds(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """[rows, columns] int32 from 0 to 2^16 - 1. Multiples of the golden ratio are spread evenly over every stretch of
    them, of which each row takes its own: a view of one vector."""
    count = ROW_SHIFT * rows + columns
    multiples = torch.arange(count, dtype=torch.int32, device=device) * GOLDEN % 2**16
    return multiples.as_strided((rows, columns), (ROW_SHIFT, 1))


def _base(layer: LoraLayer) -> torch.Tensor:
    weight = layer.base_layer.weight
    if getattr(weight, "quant_state", None) is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def _sum(layer: LoraLayer, base: torch.Tensor) -> torch.Tensor:
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    dtype = torch.promote_types(base.dtype, a.dtype)
    return torch.addmm(base.to(dtype), b.to(dtype), a.to(dtype), alpha=layer.scaling[ADAPTER])


def layers(model: torch.nn.Module) -> list[LoraLayer]:
    """Those that have an adapter. `layer.frozen` is their sum where it was made once, for sampling, else None."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    if layer.frozen is not None:
        return linear(x, layer.frozen, layer.base_layer.bias)
    return _MergedLinear.apply(x, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer)


class _MergedLinear(torch.autograd.Function):
    """y = x W'^T + bias with W' = rounded(W + s B A), whose gradient is taken as that of the sum:

    dx = dy W'    dB = s dy^T (x A^T)    dA = s (dy B)^T x
    """

    @staticmethod
    def forward(ctx, x, a, b, layer):
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        return linear(x, merged(layer), layer.base_layer.bias)

    @staticmethod
    def backward(ctx, grad):
        x, a, b = ctx.saved_tensors
        grad_x = grad @ merged(ctx.layer) if ctx.needs_input_grad[0] else None
        scale = ctx.layer.scaling[ADAPTER]
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_a = (grad @ b.to(grad.dtype)).T @ x
        grad_b = grad.T @ (x @ a.to(x.dtype).T)
        return grad_x, grad_a.to(a.dtype) * scale, grad_b.to(b.dtype) * scale, None
