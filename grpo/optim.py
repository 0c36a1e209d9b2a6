"""AdamW that keeps float32 master weights beside bfloat16 parameters, and accumulates their gradients in float32.

A bfloat16 number has 8 bits of mantissa: adding a step of 1e-6 to a weight of 0.02 gives 0.02. The masters
accumulate the steps, and the bfloat16 weight changes once they add up to half a unit in its last place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from grpo.settings import LearnerConfig


class Optimizer:
    """Parameters in any precision, masters and moments in float32 (float64 parameters are their own masters)."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], config: LearnerConfig, total_steps: int):
        """`total_steps` is the number of optimiser steps of the whole run, for the linear schedule."""
        self.config = config
        self.total_steps = total_steps
        self.steps = 0
        self.parameters = list(parameters)
        self.masters = [_master(p) for p in self.parameters]
        self.copies = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]
        for parameter, master in self.copies:
            parameter.register_post_accumulate_grad_hook(lambda p, master=master: _move_gradient(p, master))
        self.adamw = _adamw(self.masters, config)

    @property
    def lr(self) -> float:
        """Learning rate of the next step: linear warm-up, then constant, or linear to zero one step after the last."""
        peak = self.config.lr
        warmup = self.config.warmup
        if self.steps < warmup:
            return peak * (self.steps + 1) / warmup
        if self.config.schedule == "constant":
            return peak
        left = (self.total_steps - self.steps) / max(1, self.total_steps - warmup)
        return peak * max(0.0, left)

    def clip_gradients(self) -> torch.Tensor:
        """Scales the gradients to a norm of at most `grad_clip`. Returns the norm before that, on the device."""
        for master in self.masters:
            if master.grad is None:  # a step in which every group was flat is still a step
                master.grad = torch.zeros_like(master)
        return torch.nn.utils.clip_grad_norm_(self.masters, self.config.grad_clip)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.adamw.param_groups:
            group["lr"] = self.lr
        self.adamw.step()
        torch.autograd.graph.increment_version(self.masters)  # fused kernels do not, and LoRA's kept sums need it
        self.steps += 1
        if self.copies:
            parameters, masters = zip(*self.copies, strict=True)
            torch._foreach_copy_(parameters, masters)

    def skip(self) -> None:
        """Counts a skipped step: the schedule continues, so that it ends with the run."""
        self.steps += 1

    def zero_grad(self) -> None:
        for tensor in (*self.parameters, *self.masters):
            tensor.grad = None

    def state_dict(self) -> dict:
        """Moments and masters, which only `step` changes. `Learner.counters` has `steps`, which `skip` changes too."""
        return {"adamw": self.adamw.state_dict(), "masters": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        self.adamw.load_state_dict(state["adamw"])
        for parameter, master, saved in zip(self.parameters, self.masters, state["masters"], strict=True):
            master.copy_(saved)
            parameter.copy_(master)


def _master(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return torch.nn.Parameter(parameter.detach().float())


def _move_gradient(parameter: torch.nn.Parameter, master: torch.nn.Parameter) -> None:
    """After each backward pass: add the bfloat16 gradient to the float32 sum and free it."""
    assert parameter.grad is not None
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad += parameter.grad
    parameter.grad = None


def _adamw(masters: list[torch.nn.Parameter], config: LearnerConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(masters, **settings)
    adamw = torch.optim.AdamW(masters, fused=True, **settings)  # one pass over the memory
    for master in masters:  # allocated now: the sampler takes the rest of the memory before the first step
        moments = {name: torch.zeros_like(master) for name in ("exp_avg", "exp_avg_sq")}
        adamw.state[master] = {"step": torch.zeros((), device=master.device)} | moments
    return adamw
