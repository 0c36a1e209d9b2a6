"""Group-relative advantages: how much better a completion did than the others on the same problem.

GRPO (arXiv 2402.03300) uses the group itself as the baseline, so there is no value network:

    A_i = (r_i - mean(r)) / (std(r) + eps)

Everything is float64: rewards are weighted sums such as 0.1 + 0.2, and their rounding error must not become a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from rewards import Score

EPS = 1e-6
ROUNDING = 1e-9


def compute_advantages(
    scores: Sequence[Sequence[Score]], weights: dict[str, float], how: Literal["std", "no_std", "per_signal"]
) -> torch.Tensor:
    """[groups][completions] scores -> [groups, completions] advantages. `weights`: of each signal in the total."""
    if how == "per_signal":
        signals = [[[s.signals[name] for s in group] for group in scores] for name in weights]
        return per_signal_advantages(
            torch.tensor(signals, dtype=torch.float64), torch.tensor(list(weights.values()), dtype=torch.float64)
        )
    totals = torch.tensor([[s.total for s in group] for group in scores], dtype=torch.float64)
    return group_advantages(totals, divide_by_std=how == "std")


def zero_variance(rewards: torch.Tensor) -> torch.Tensor:
    """[groups] bool: the rewards of the group are all equal, so that there is nothing to compare.

    Equal up to the rounding of adding weighted signals in another order: 0.3 and 0.1 + 0.2 are one reward.

    >>> zero_variance(torch.tensor([[0.3, 0.1 + 0.2], [0.0, 1.0]], dtype=torch.float64))
    tensor([ True, False])
    """
    low, high = rewards.amin(-1), rewards.amax(-1)
    return (high - low) <= ROUNDING * torch.maximum(high.abs(), low.abs()).clamp(min=1.0)


def group_advantages(rewards: torch.Tensor, divide_by_std: bool = True) -> torch.Tensor:
    """[groups, completions] rewards -> [groups, completions] advantages; exact zeros where a group has no spread.

    The standard deviation is the sample's (n - 1). Without the division this is Dr. GRPO (arXiv 2503.20783), which does
    not blow up groups that nearly agree.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).round(decimals=3)  # mean 1/4, std 1/2
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]], dtype=torch.float64)
    """
    rewards = rewards.double()
    advantages = rewards - rewards.mean(-1, keepdim=True)
    if divide_by_std:
        advantages = advantages / (rewards.std(-1, keepdim=True) + EPS)
    return torch.where(zero_variance(rewards)[:, None], 0.0, advantages)


def per_signal_advantages(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[signals, groups, completions], [signals] weights -> [groups, completions] advantages (GDPO, arXiv 2601.05242).

    Each signal is compared within its group before the weighted sum, so that different mixes of signals with one total
    stay apart; the sum is then brought back to unit spread over the batch.
    """
    weights = weights.double()
    compared = torch.stack([group_advantages(signal) for signal in signals])
    advantages = (weights[:, None, None] * compared).sum(0)
    return advantages / (advantages.std() + EPS)
