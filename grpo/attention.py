"""Attention over packed sequences, registered with transformers under the name "packed".

The same function serves the sampler: without `segments` it is ordinary attention over a KV cache. Because the name is
ours, transformers builds no mask for it, and therefore none of its guesses about packing can leak one sequence into
another.
"""

from __future__ import annotations

from inspect import signature

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from grpo.environment import installed
from grpo.errors import UserError
from grpo.packing import Segments

NAME = "packed"


def kernel(device_type: str, dtype: torch.dtype, chosen: str = "auto") -> str:
    """`chosen`, else flash_attention_2 where flash-attn is installed, else varlen (torch's flash kernels).

    sdpa, run by run, wherever the flash kernels cannot compute: on a CPU and in float32.
    """
    if chosen == "flash_attention_2" and not installed("flash_attn"):
        raise UserError(
            "policy.attention is flash_attention_2, but flash-attn is not installed: pip install flash-attn "
            "--no-build-isolation (it compiles for long), or policy.attention auto"
        )
    if device_type != "cuda" or dtype is not torch.bfloat16:
        return "sdpa"
    if chosen != "auto":
        return chosen
    return "flash_attention_2" if installed("flash_attn") else "varlen"


LOST = {
    "varlen": "attention: flash-attn is not installed, so torch's own varlen kernels run: exact, of the same family",
    "sdpa": "attention: sdpa, one call per sequence: the same result, slower with many short sequences",
}
"""What a GPU loses with the kernel it gets; a CPU has no other than sdpa."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    segments: Segments | None = None,
    packed_kernel: str = "sdpa",
    **_: object,
) -> tuple[torch.Tensor, None]:
    """[B, heads, T, D] queries and [B, kv_heads, K, D] keys and values -> [B, T, heads, D]. transformers calls it so.

    With `segments` B is 1 and every run attends causally to itself after its prefix. Without, `attention_mask` is a
    boolean [B, 1, T, K] or None: causal for a whole sequence, everything for the single query of a decoding step.
    """
    if segments is None:
        causal = attention_mask is None and query.shape[2] > 1
        out = _sdpa(query, key, value, scaling, attn_mask=attention_mask, is_causal=causal)
        return out.transpose(1, 2), None
    if packed_kernel == "sdpa":
        return _run_by_run(query, key, value, scaling, segments), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    k, v = k[segments.key_index], v[segments.key_index]
    limits = (segments.cu_queries, segments.cu_keys, max(segments.queries), max(segments.keys))
    if packed_kernel == "flash_attention_2":
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(q, k, v, *limits, softmax_scale=scaling, causal=True)[None], None
    return _varlen(q, k, v, limits, scaling)[None], None


def _varlen(q, k, v, limits, scaling) -> torch.Tensor:
    """torch's own kernels. torch 2.11 knows grouped heads without being told, and has no argument to be told by."""
    from torch.nn.attention.varlen import varlen_attn

    told = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in signature(varlen_attn).parameters else {}
    return varlen_attn(q, k, v, *limits, scale=scaling, window_size=(-1, 0), **told)


def _run_by_run(query, key, value, scaling, segments: Segments) -> torch.Tensor:
    """Exact on any device and in any precision: one call per run, no padding and no mask between runs.

    `split` rather than slices: the gradient of a split is one concatenation, that of a slice a tensor full of zeros.
    """
    key, value = (x.index_select(2, segments.key_index) for x in (key, value))
    queries, keys = segments.queries, segments.keys
    runs = zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    return torch.cat([_causal(q, k, v, scaling) for q, k, v in runs], 2).transpose(1, 2)


def _causal(query, key, value, scaling) -> torch.Tensor:
    """The last query sees every key, each one before it one fewer."""
    return _sdpa(query, key, value, scaling, attn_mask=causal_lower_right(query.shape[2], key.shape[2]))


def _sdpa(query, key, value, scaling, **mask) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped, **mask)


AttentionInterface.register(NAME, packed_attention)
