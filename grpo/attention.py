"""Attention over packed sequences, registered with transformers under the name "packed".

The same function serves the sampler: without `segments` it is ordinary attention over a KV cache. transformers does not
know the name and builds no mask for it, so none of its guesses about packing can leak one sequence into another.
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
NOT_COMPUTED = ("softcap", "s_aux", "position_bias", "indices", "block_indices")
"""Arguments of a model's attention that are not computed here. With random or small weights some of them change the
result too little for the model check to notice."""


def kernel(device_type: str, dtype: torch.dtype, chosen: str = "auto") -> str:
    """Returns the kernel: `chosen`; for auto, flash_attention_2 if installed, else varlen (torch's flash kernels).

    On a CPU and in float32 always sdpa: there are no flash kernels for them. Raises UserError for a missing flash-attn.
    """
    if chosen == "flash_attention_2" and not installed("flash_attn"):
        raise UserError(
            "policy.attention is flash_attention_2, but flash-attn is not installed: pip install flash-attn "
            "--no-build-isolation (it compiles for a long time), or use policy.attention auto"
        )
    if device_type != "cuda" or dtype is not torch.bfloat16:
        return "sdpa"
    if chosen != "auto":
        return chosen
    return "flash_attention_2" if installed("flash_attn") else "varlen"


KERNEL_NOTES = {
    "varlen": "attention: flash-attn is not installed; torch's own varlen kernels run: exact, of the same family",
    "sdpa": "attention: sdpa, one call per sequence: the same result, slower with many short sequences",
}
"""Note printed on a GPU for each kernel slower than flash-attn"""


def note(used: str, chosen: str, device_type: str) -> str | None:
    """Returns one line if the kernel `used` is not the chosen one, or if a faster one exists; else None."""
    if chosen not in ("auto", used):
        return f"attention: {chosen} computes in bfloat16 on a GPU only; {used} is used, with the same result"
    return KERNEL_NOTES.get(used) if device_type == "cuda" else None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: Segments | None = None,
    packed_kernel: str = "sdpa",
    **options: object,
) -> tuple[torch.Tensor, None]:
    """[B, heads, T, D] queries and [B, kv_heads, K, D] keys and values -> [B, T, heads, D], as transformers calls it.

    With `segments` B is 1, and every run attends causally to itself after its prefix. Without, `attention_mask` is a
    boolean [B, 1, T, K], or None for plainly causal attention, and the queries belong to the last T of the K columns.
    A token sees itself and the `sliding_window` - 1 tokens before it, or all of them without a window. Raises UserError
    for an argument that is not computed here.
    """
    if unknown := [name for name in NOT_COMPUTED if options.get(name) is not None]:
        raise UserError(f"its attention takes {unknown[0]}, which packed attention does not compute")
    if segments is None:
        return _attend(query, key, value, scaling, sliding_window, attention_mask).transpose(1, 2).contiguous(), None
    if packed_kernel == "sdpa":
        return _run_by_run(query, key, value, scaling, sliding_window, segments), None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    k, v = k[segments.key_index], v[segments.key_index]
    limits = (segments.cu_queries, segments.cu_keys, max(segments.queries), max(segments.keys))
    window = (sliding_window - 1 if sliding_window else -1, 0)  # tokens to the left and to the right of the query
    if packed_kernel == "flash_attention_2":
        from flash_attn import flash_attn_varlen_func

        out = flash_attn_varlen_func(q, k, v, *limits, softmax_scale=scaling, causal=True, window_size=window)
        return out[None], None
    return _varlen(q, k, v, limits, scaling, window)[None], None


def _varlen(q, k, v, limits, scaling, window) -> torch.Tensor:
    """torch's own kernels. torch 2.11 detects grouped heads and has no argument for them."""
    from torch.nn.attention.varlen import varlen_attn

    grouped = {"enable_gqa": q.shape[1] != k.shape[1]} if "enable_gqa" in signature(varlen_attn).parameters else {}
    out = varlen_attn(q, k, v, *limits, scale=scaling, window_size=window, **grouped)
    assert isinstance(out, torch.Tensor)  # a tuple comes only with the log-sum-exp, which was not requested
    return out


def _run_by_run(query, key, value, scaling, window, segments: Segments) -> torch.Tensor:
    """Exact on any device and in any precision: one call per run, no padding and no mask between runs.

    `split` rather than slices: the gradient of a split is one concatenation, that of a slice a tensor full of zeros.
    """
    key, value = (x.index_select(2, segments.key_index) for x in (key, value))
    queries, keys = segments.queries, segments.keys
    runs = zip(query.split(queries, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    return torch.cat([_attend(q, k, v, scaling, window) for q, k, v in runs], 2).transpose(1, 2).contiguous()


def _attend(query, key, value, scaling, window, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Causal attention, aligned at the last key. `window` and `mask` restrict it further."""
    rows, columns = query.shape[2], key.shape[2]
    causal = False
    if window and columns > window:
        positions = torch.arange(columns, device=query.device)
        ahead = positions - positions[-rows:, None]  # [rows, columns] how far a key lies ahead of a query; < 0: behind
        band = (ahead <= 0) & (ahead > -window)
        mask = band if mask is None else mask & band
    elif mask is None and rows == columns:
        causal = True
    elif mask is None and rows > 1:
        mask = causal_lower_right(rows, columns)
    if rows == 1:  # a decoding step: the heads that share keys become queries of one head, and the keys are read once
        shared = query.reshape(len(query), key.shape[1], -1, query.shape[3])
        if query.is_cpu and query.dtype is torch.float32:  # two products are faster than the kernel for many queries
            scores = shared @ key.mT * (query.shape[3] ** -0.5 if scaling is None else scaling)
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            out = scores.softmax(-1) @ value
        else:
            out = F.scaled_dot_product_attention(shared, key, value, mask, scale=scaling)
        return out.reshape(*query.shape[:3], -1)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=grouped)


AttentionInterface.register(NAME, packed_attention)
