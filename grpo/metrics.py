"""Metrics of an optimiser step: summed on the device, and read once at its end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from grpo.loss import Surrogate, completion_ratio
from grpo.packing import Batch

Scalar = TypeVar("Scalar", torch.Tensor, float)


class StepMetrics(NamedTuple, Generic[Scalar]):
    """Sums and maxima over one optimiser step: scalar float64 tensors on the device, and floats after `read_step`."""

    tokens: Scalar
    completions: Scalar
    loss: Scalar
    policy_loss: Scalar
    kl: Scalar
    entropy: Scalar
    ratios: Scalar
    """Number of importance ratios: one per token, or per completion for gspo"""
    clipped_low: Scalar
    clipped_high: Scalar
    ratio_max: Scalar
    logprob_diff: Scalar
    """Sum of |sampler logprob - trainer logprob|"""
    logprob_diff_max: Scalar
    weight: Scalar
    """Sum of the completions' importance weights, trainer / sampler"""
    weight_squared: Scalar
    grad_norm: Scalar

    @classmethod
    def zeros(cls, device: torch.device) -> StepMetrics[torch.Tensor]:
        return StepMetrics(*torch.zeros(len(cls._fields), dtype=torch.float64, device=device))

    @property
    def finite(self) -> bool:
        """True if loss and gradient are finite, so the step may move the weights."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@torch.no_grad()
def add_batch(
    metrics: StepMetrics[torch.Tensor],
    batch: Batch,
    old_logprobs: torch.Tensor,
    surrogate: Surrogate,
    loss: torch.Tensor,
    kl: torch.Tensor,
    entropy: torch.Tensor,
) -> None:
    """Adds a micro-batch. `loss` is its part of the step's loss; `kl` and `entropy` are [N]."""
    difference = (old_logprobs - batch.sampler_logprobs).abs()
    weight = completion_ratio(old_logprobs, batch)
    for total, values in (
        (metrics.tokens, torch.ones_like(batch.weights)),
        (metrics.completions, torch.ones_like(weight)),
        (metrics.loss, loss),
        (metrics.policy_loss, batch.weights * surrogate.loss),
        (metrics.kl, kl),
        (metrics.entropy, entropy),
        (metrics.ratios, torch.ones_like(surrogate.ratio)),
        (metrics.clipped_low, surrogate.clipped_low),
        (metrics.clipped_high, surrogate.clipped_high),
        (metrics.logprob_diff, difference),
        (metrics.weight, weight),
        (metrics.weight_squared, weight**2),
    ):
        total += values.sum(dtype=torch.float64)
    for largest, values in ((metrics.ratio_max, surrogate.ratio), (metrics.logprob_diff_max, difference)):
        torch.maximum(largest, values.double().max(), out=largest)  # keeps a NaN


def read_step(metrics: StepMetrics[torch.Tensor]) -> StepMetrics[float]:
    """The same as Python floats: the only wait for the device in an optimiser step."""
    return StepMetrics(*torch.stack(metrics).tolist())


def over_steps(steps: Sequence[StepMetrics[float]]) -> dict[str, float]:
    """Metrics over all tokens (or completions) of the steps. NaN, not 0, if there is no token."""
    total: StepMetrics[float] = StepMetrics(*(sum(values) for values in zip(*steps, strict=True)))
    largest: StepMetrics[float] = StepMetrics(*np.max(steps, axis=0).tolist())  # Python's max may lose a NaN
    tokens, ratios = total.tokens or math.nan, total.ratios or math.nan
    return {
        # A step's loss is already normalised over its tokens, so it is weighted with their number.
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
