"""Stand-ins for what torch's meta device lacks: there tensors have a size and no data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from grpo import attention, optim, policy


class FlashAttention(torch.autograd.Function):
    """Keeps what a flash kernel keeps."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:2], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, *_ = ctx.saved_tensors
        return tuple(torch.empty_like(tensor) for tensor in (q, k, v))


class FusedNorm(torch.autograd.Function):
    """Keeps what the fused RMSNorm keeps, which the meta device takes apart."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


class FusedAdamW(torch.optim.Optimizer):
    """Has the moments of fused AdamW and does nothing."""

    def __init__(self, masters: list[torch.nn.Parameter]):
        super().__init__(masters, {})
        for master in masters:
            self.state[master] = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}

    def step(self):
        pass


@contextmanager
def meta_kernels() -> Iterator[None]:
    """Attention and norms in one kernel each, fused AdamW, and numbers that can be read."""

    def attend(query, key, value, scaling, window, segments):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return FlashAttention.apply(q, k[segments.key_index], v[segments.key_index])[None]

    with (
        patch.object(attention, "_run_by_run", attend),
        patch.object(policy, "_rms_norm", lambda norm, x: FusedNorm.apply(x, norm.weight)),
        patch.object(optim, "_adamw", lambda masters, *_, **__: FusedAdamW(masters)),
        patch.object(torch.Tensor, "tolist", lambda tensor: [0.0] * tensor.numel()),
        torch.device("meta"),
    ):
        yield
