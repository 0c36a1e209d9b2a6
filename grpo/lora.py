"""LoRA whose policy is the very model that its sampler gets: W + s B A, summed in float32 and rounded once.

The usual layer computes x W and s (x A) B separately, while a sampler gets the sum as one matrix. In bfloat16 these are
different models: a small step of the adapter moves the first and is lost in the rounding of the second. Here both
compute with the rounded sum, and the rounding is dithered: every weight has its own fixed threshold, and the thresholds
are uniform. A step of a hundredth of a unit in the last place moves one weight in a hundred by a whole unit, so a row
of weights moves by the right amount. Rounding to nearest would lose the step until it had grown to half a unit.

It is also less work: one matrix product forward instead of three, none of it in float32, and only x is kept for the
backward pass. Computing the sum costs rank / tokens times the layer's product. It is computed once per optimiser step
if memory allows, otherwise in every pass.
"""

from __future__ import annotations

from functools import cache
from types import MethodType

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import linear
from transformers import PreTrainedModel

from grpo.errors import UserError
from grpo.hub import ADAPTER_WEIGHTS

ADAPTER = "default"
GOLDEN = 40503  # 2^16 times 0.618, odd
ROW_SHIFT = 37


def add_lora(model: PreTrainedModel, rank: int, alpha: float) -> PeftModel:
    """Adds an adapter to all linear layers of `model` but the head; B starts at 0."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    for layer in layers(wrapped):
        if not isinstance(layer.base_layer, torch.nn.Linear):
            raise UserError(
                f"LoRA adapts torch.nn.Linear, and this model has {type(layer.base_layer).__name__} layers; train all "
                "weights (--policy.lora_rank 0)"
            )
        layer.forward = MethodType(_forward, layer)
    keep_sums(wrapped, False)
    return wrapped


def open_adapter(model: PreTrainedModel, folder: str, rank: int | None = None, alpha: float | None = None) -> PeftModel:
    """`model` with the adapter of `folder`. UserError if its rank or alpha differs from the one given, or if it is
    not LoRA on all linear layers, as this trainer makes it."""
    config = LoraConfig.from_pretrained(folder)
    rank, alpha = rank or config.r, alpha or config.lora_alpha
    wrapped = add_lora(model, rank, alpha)
    saved = load_file(f"{folder}/{ADAPTER_WEIGHTS}")
    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    if _shapes(tensors) != _shapes(saved) or config.lora_alpha != alpha or config.use_rslora:
        settings = f"--policy.lora_rank {config.r} --policy.lora_alpha {config.lora_alpha:g}"
        raise UserError(
            f"{folder} is an adapter of rank {config.r} and alpha {config.lora_alpha:g}, not LoRA of rank {rank} and "
            f"alpha {alpha:g} on all linear layers; continue it with {settings}, or start from its merged weights: "
            f"python -m tools.export merged {folder} --out DIR"
        )
    set_peft_model_state_dict(wrapped, saved)
    return wrapped


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


@torch.no_grad()
def merge(wrapped: PeftModel) -> PreTrainedModel:
    """The plain model with the weights that the policy computes with."""
    for layer in layers(wrapped):
        layer.base_layer.weight.data = merged(layer)
    return wrapped.unload()


@torch.no_grad()
def merged(layer: LoraLayer) -> torch.Tensor:
    """[out, in] W + s B A in W's precision; W alone while the adapter is switched off. A 4-bit W is dequantised.

    Kept from pass to pass where `layer.keep` is set, until A or B changes.
    """
    if layer.disable_adapters:
        return _base(layer)
    version = tuple(adapter[ADAPTER].weight._version for adapter in (layer.lora_A, layer.lora_B))
    if layer.kept is not None and layer.version == version:
        return layer.kept
    base = _base(layer)
    total = rounded(_sum(layer, base), base.dtype)
    layer.kept, layer.version = (total, version) if layer.keep else (None, None)
    return total


@torch.no_grad()
def update_retention(model: torch.nn.Module) -> float:
    """The share of the adapter's change that survives rounding: <W' - W, s B A> / |s B A|^2, W' the rounded sum."""
    retained: torch.Tensor | float = 0.0
    total: torch.Tensor | float = 0.0
    for layer in layers(model):
        base = _base(layer)
        total_weight = _sum(layer, base)
        exact = total_weight - base
        change = rounded(total_weight, base.dtype) - base.to(exact.dtype)
        retained += (change * exact).sum()
        total += exact.square().sum()
    return float(retained / total) if total > 0 else 1.0


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, columns] in `dtype`. To bfloat16 with a fixed dither: a number between two bfloat16 neighbours goes to
    each with the probability that keeps the mean. A bfloat16 number stays unchanged."""
    if dtype is not torch.bfloat16:
        return exact.to(dtype)
    # A bfloat16 number is the upper half of a float32 one; a threshold below 2^16 is added to the lower half.
    bits = exact.view(torch.int32) + _thresholds(*exact.shape, exact.device)
    return bits.view(torch.int16)[:, 1::2].contiguous().view(dtype)  # the upper halves, on a little-endian machine


@cache
def _thresholds(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """[rows, columns] int32 from 0 to 2^16 - 1. Multiples of the golden ratio are evenly spread over every stretch of
    the sequence. Each row is a stretch of its own, so the matrix is a view of one vector."""
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
    """The layers that have an adapter."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def is_part(name: str) -> bool:
    """True for the modules inside a layer that has an adapter."""
    return ".lora_" in name or name.endswith(".base_layer")


def keep_sums(model: torch.nn.Module, keep: bool) -> None:
    """Makes `merged` keep its sums, or stop keeping them; drops the sums kept so far."""
    for layer in layers(model):
        layer.keep = keep
        layer.kept = None
        layer.version = None


def _forward(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    return _MergedLinear.apply(x, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer)


class _MergedLinear(torch.autograd.Function):
    """y = x W'^T + bias with W' = rounded(W + s B A). The gradient ignores the rounding:

    dx = dy W'    dB = s dy^T (x A^T)    dA = s (dy B)^T x
    """

    @staticmethod
    def forward(ctx, x, a, b, layer):
        ctx.save_for_backward(x, a, b)
        ctx.layer = layer
        bias = layer.base_layer.bias
        # The casts matter only in the model check, which computes with float32 inputs.
        return linear(x, merged(layer).to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad):
        x, a, b = ctx.saved_tensors
        grad_x = grad @ merged(ctx.layer) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        scale = ctx.layer.scaling[ADAPTER]
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
        grad_a = (grad @ b.to(grad.dtype)).T @ x
        grad_b = grad.T @ (x @ a.to(x.dtype).T)
        return grad_x, grad_a.to(a.dtype) * scale, grad_b.to(b.dtype) * scale, None
