"""Floating-point operations of a step, counted once from the model's configuration, and what the device could do.

A product of an [n, a] with an [a, b] matrix takes 2 n a b operations. Counted are the products of the layers, of
attention and of the head; norms, rotary embeddings and softmax are small beside them. What gradient checkpointing
computes a second time is not counted a second time: model FLOPs utilisation credits the work, not how it is done
(arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import time

import torch
from transformers import PreTrainedConfig

# Dense bfloat16 operations per second with float32 sums, from the data sheets.
DATASHEET = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "4090": 165e12,
    "3090": 71e12,
}


def layer_weights(config: PreTrainedConfig) -> int:
    """Elements of the matrices that every token meets in the layers: attention and a gated MLP (Qwen2, Llama)."""
    c = config.get_text_config()
    width = attention_width(config)
    key_value_width = width * c.num_key_value_heads // c.num_attention_heads
    return c.num_hidden_layers * c.hidden_size * (2 * width + 2 * key_value_width + 3 * c.intermediate_size)


def attention_width(config: PreTrainedConfig) -> int:
    """Heads x head dimension; not always the hidden size (Qwen3)."""
    c = config.get_text_config()
    head = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return c.num_attention_heads * head


def causal_pairs(length: int, prefix: int = 0) -> int:
    """(query, key) pairs of `length` tokens that see themselves causally after `prefix` tokens they all see."""
    return length * prefix + length * (length + 1) // 2


def forward_flops(config: PreTrainedConfig, tokens: int, pairs: int, predicted: int | None = None) -> int:
    """Operations of one forward pass over `tokens` tokens that attend over `pairs` (query, key) pairs in all.

    `predicted`: positions the head is computed on; all of them by default.
    """
    c = config.get_text_config()
    layers = 2 * layer_weights(config) * tokens
    attention = c.num_hidden_layers * 4 * attention_width(config) * pairs  # scores, and the weighted sum of values
    head = 2 * c.hidden_size * c.vocab_size * (tokens if predicted is None else predicted)
    return layers + attention + head


def training_flops(
    config: PreTrainedConfig, tokens: int, pairs: int, predicted: int | None = None, frozen: bool = False
) -> int:
    """Operations of a forward and a backward pass.

    The backward pass takes two products for each of the forward pass: the gradients of both factors. With `frozen`
    weights (LoRA; the adapter's own small work is not counted) that of the weights falls away.
    """
    forward = forward_flops(config, tokens, pairs, predicted)
    if not frozen:
        return 3 * forward
    return 2 * forward + forward_flops(config, 0, pairs)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that utilisation is measured against: the data sheet's, else those of a matrix product."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in DATASHEET.items():
            if known in name:
                return peak
    return measured_flops(device, dtype, size=4096 if device.type == "cuda" else 1024)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 5) -> float:
    """Operations per second of the fastest of a few [size, size] matrix products."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
