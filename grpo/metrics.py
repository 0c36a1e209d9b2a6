"""Metrics of an optimiser step: summed on the device without waiting for it, and read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from grpo.loss import Surrogate, completion_ratio
from grpo.packing import Batch


class StepMetrics(NamedTuple):
    """Sums and maxima over one optimiser step: scalar float64 tensors on the device, and floats after `read`."""

    tokens: torch.Tensor
    completions: torch.Tensor
    loss: torch.Tensor
    policy_loss: torch.Tensor
    kl: torch.Tensor
    entropy: torch.Tensor
    ratios: torch.Tensor
    """Number of importance ratios: one a token, or one a completion for gspo"""
    clipped_low: torch.Tensor
    clipped_high: torch.Tensor
    ratio_max: torch.Tensor
    logprob_diff: torch.Tensor
    """Sum of |sampler logprob - trainer logprob|"""
    logprob_diff_max: torch.Tensor
    weight: torch.Tensor
    """Sum of the completions' importance weights, trainer / sampler"""
    weight_squared: torch.Tensor
    grad_norm: torch.Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> StepMetrics:
        return cls(*torch.zeros(len(cls._fields), dtype=torch.float64, device=device))

    @property
    def finite(self) -> bool:
        """The loss and the gradient are finite numbers, so the step may move the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @torch.no_grad()
    def add(
        self,
        batch: Batch,
        old_logprobs: torch.Tensor,
        surrogate: Surrogate,
        loss: torch.Tensor,
        kl: torch.Tensor,
        entropy: torch.Tensor,
    ) -> None:
        """Adds a micro-batch. `loss` is its share in the loss of the step; `kl` and `entropy` are [N]."""
        difference = (old_logprobs - batch.sampler_logprobs).abs()
        weight = completion_ratio(old_logprobs, batch)
        for total, values in (
            (self.tokens, torch.ones_like(batch.weights)),
            (self.completions, torch.ones_like(weight)),
            (self.loss, loss),
            (self.policy_loss, batch.weights * surrogate.loss),
            (self.kl, kl),
            (self.entropy, entropy),
            (self.ratios, torch.ones_like(surrogate.ratio)),
            (self.clipped_low, surrogate.clipped_low),
            (self.clipped_high, surrogate.clipped_high),
            (self.logprob_diff, difference),
            (self.weight, weight),
            (self.weight_squared, weight**2),
        ):
            total += values.sum(dtype=torch.float64)
        for largest, values in ((self.ratio_max, surrogate.ratio), (self.logprob_diff_max, difference)):
            torch.maximum(largest, values.double().max(), out=largest)  # keeps a NaN

    def read(self) -> StepMetrics:
        """The same as Python floats: the only wait for the device in an optimiser step."""
        return StepMetrics(*torch.stack(self).tolist())


def over_steps(steps: Sequence[StepMetrics]) -> dict[str, float]:
    """Metrics over all tokens (or completions) of the steps. Without a token they were not measured: NaN, and not 0."""
    total = StepMetrics(*map(sum, zip(*steps, strict=True)))
    largest = StepMetrics(*np.max(steps, axis=0).tolist())  # Python's max may lose a NaN
    tokens, ratios = total.tokens or math.nan, total.ratios or math.nan
    return {
        # The weights of a step's tokens add up to 1, so its loss is a mean.
        "loss/total": sum(step.loss * step.tokens for step in steps) / max(total.tokens, 1),
        "loss/policy": sum(step.policy_loss * step.tokens for step in steps) / max(total.tokens, 1),
        "policy/kl": total.kl / tokens,
        "policy/entropy": total.entropy / tokens,
        "policy/clip_fraction_low": total.clipped_low / ratios,
        "policy/clip_fraction_high": total.clipped_high / ratios,
        "policy/ratio_max": largest.ratio_max if total.tokens else math.nan,
        "policy/grad_norm": largest.grad_norm,
        "logprob_diff/mean": total.logprob_diff / tokens,
        "logprob_diff/max": largest.logprob_diff_max if total.tokens else math.nan,
        "logprob_diff/ess": total.weight**2 / (total.weight_squared * total.completions or math.nan),
    }
