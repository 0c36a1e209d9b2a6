"""Advantages: how much better a completion did than the others of its group.

GRPO (arXiv 2402.03300) takes the group itself as the baseline, so there is no value network:

    A_i = (r_i - mean(r)) / (std(r) + eps)

Each estimator is one function; `ESTIMATORS` maps `learner.advantage` to it. All arithmetic is float64: rewards are
weighted sums such as 0.1 + 0.2, and their rounding error must not become a signal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from grpo.errors import UserError
from rewards import Score

EPS = 1e-6
ROUNDING = 1e-9


def compute_advantages(scores: Sequence[Sequence[Score]], weights: dict[str, float], estimator: str) -> torch.Tensor:
    """[groups][completions] scores -> [groups, completions] float64 advantages.

    `weights` holds the weight of each signal in the total. Raises UserError for maxrl with a negative reward.
    """
    if estimator == "gdpo":
        signals = [[[score.signals[name] for score in group] for group in scores] for name in weights]
        signal_weights = torch.tensor(list(weights.values()), dtype=torch.float64)
        return gdpo(torch.tensor(signals, dtype=torch.float64), signal_weights)
    totals = [[score.total for score in group] for group in scores]
    return group_advantages(torch.tensor(totals, dtype=torch.float64), estimator)


def group_advantages(rewards: torch.Tensor, estimator: str = "grpo") -> torch.Tensor:
    """[groups, completions] rewards -> [groups, completions] float64 advantages.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]])).round(decimals=3)  # mean 1/4, std 1/2
    tensor([[ 1.5000, -0.5000, -0.5000, -0.5000]], dtype=torch.float64)
    """
    return ESTIMATORS[estimator](rewards.double())


def zero_variance(rewards: torch.Tensor) -> torch.Tensor:
    """[groups, completions] rewards -> [groups] bool: all rewards of the group are equal.

    Equal up to rounding, because the order of a sum changes its last bit: 0.3 and 0.1 + 0.2 count as equal.

    >>> zero_variance(torch.tensor([[0.3, 0.1 + 0.2], [0.0, 1.0]], dtype=torch.float64))
    tensor([ True, False])
    """
    low, high = rewards.amin(-1), rewards.amax(-1)
    return (high - low) <= ROUNDING * torch.maximum(high.abs(), low.abs()).clamp(min=1.0)


def dr_grpo(rewards: torch.Tensor) -> torch.Tensor:
    """r - mean, and exact zeros for a group of equal rewards (Dr. GRPO, arXiv 2503.20783)."""
    return torch.where(zero_variance(rewards)[:, None], 0.0, rewards - rewards.mean(-1, keepdim=True))


def grpo(rewards: torch.Tensor) -> torch.Tensor:
    """(r - mean) / (std + eps) with the sample's standard deviation, n - 1 (GRPO, arXiv 2402.03300)."""
    return dr_grpo(rewards) / (rewards.std(-1, keepdim=True) + EPS)


def rloo(rewards: torch.Tensor) -> torch.Tensor:
    """r minus the mean of the other n - 1 rewards: (r - mean) n / (n - 1) (RLOO, arXiv 2402.14740)."""
    size = rewards.shape[-1]
    return dr_grpo(rewards) * size / (size - 1)


def maxrl(rewards: torch.Tensor) -> torch.Tensor:
    """(r - mean) / (mean + eps) for rewards of at least 0 (MaxRL, arXiv 2602.02710)."""
    if (rewards < 0).any():
        raise UserError(
            f"a reward is {rewards.min().item():g}, but learner.advantage maxrl divides by the group's mean and needs "
            "rewards of at least 0; change the reward, or set learner.advantage to rloo or dr_grpo"
        )
    return dr_grpo(rewards) / (rewards.mean(-1, keepdim=True) + EPS)


def no_baseline(rewards: torch.Tensor) -> torch.Tensor:
    """r itself: REINFORCE (Williams, 1992). With rewards of 0 and 1 this is rejection fine-tuning."""
    return rewards


def gdpo(signals: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """[signals, groups, completions], [signals] weights -> [groups, completions] advantages (GDPO, arXiv 2601.05242).

    Each signal is compared within its group before the weighted sum. So two completions with the same total but
    different signals get different advantages. The sum is divided by its standard deviation over the batch.
    """
    compared = torch.stack([grpo(signal) for signal in signals])
    advantages = (weights[:, None, None] * compared).sum(0)
    return advantages / (advantages.std() + EPS)


ESTIMATORS = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "maxrl": maxrl, "none": no_baseline}
"""`learner.advantage` -> function of the [groups, completions] rewards. Not gdpo, which takes the signals."""
