"""LoRA whose policy is the very model that its sampler gets: W + s B A, summed in float32 and rounded once.

The usual layer computes x W and s (x A) B apart, while a sampler gets the sum as one matrix. In bfloat16 the two are
different models: a small step of the adapter moves the first and is lost in the rounding of the second. Here both
compute with the rounded sum. Its gradient is taken as if there were no rounding, so that A and B, which are float32,
collect small steps until they show, as the master weights of full fine-tuning do.

It is also less work: one matrix product forward instead of three, none of it in float32, and only x is kept for the
backward pass. The sum is made anew in every pass, which costs rank / tokens of the layer's own product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MethodType

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.nn.functional import linear
from transformers import PreTrainedModel

ADAPTER = "default"


def add_lora(model: PreTrainedModel, rank: int, alpha: float) -> PeftModel:
    """`model` with an adapter on all linear layers but the head; B starts at 0."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    for layer in _layers(wrapped):
        layer.forward, layer.frozen = MethodType(_forward, layer), None
    return wrapped


@torch.no_grad()
def merged(layer: LoraLayer) -> torch.Tensor:
    """[out, in] W + s B A in W's precision; W alone while the adapter is switched off. A 4-bit W is dequantised."""
    base = layer.base_layer.weight
    if getattr(base, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        base = dequantize_4bit(base.data, base.quant_state)
    if layer.disable_adapters:
        return base
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    exact = torch.promote_types(base.dtype, a.dtype)
    return torch.addmm(base.to(exact), b.to(exact), a.to(exact), alpha=layer.scaling[ADAPTER]).to(base.dtype)


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """While it lasts no weight moves: every layer's sum is made once. For sampling, a token at a time."""
    layers = _layers(model)
    for layer in layers:
        layer.frozen = merged(layer)
    try:
        yield
    finally:
        for layer in layers:
            layer.frozen = None


def _layers(model: torch.nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    if layer.frozen is not None:
        return linear(x, layer.frozen, layer.base_layer.bias)
    return _MergedLinear.apply(x, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer)


class _MergedLinear(torch.autograd.Function):
    """y = x W'^T + bias with W' = round(W + s B A); the gradient passes the rounding unchanged:

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
