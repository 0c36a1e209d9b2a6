"""Advantages compare within a group, and a group of equal rewards gives zeros."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch

from grpo.advantage import ESTIMATORS, gdpo, group_advantages, zero_variance
from grpo.errors import UserError
from grpo.loss import LOSSES
from grpo.settings import LearnerConfig


def test_worked_example():
    # (1, 0, 0, 0): mean 1/4, squared deviations 9/16 + 3 * 1/16 = 3/4, variance 3/4 / (4 - 1) = 1/4, std 1/2.
    # Advantages (3/4, -1/4, -1/4, -1/4) / (1/2).
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(advantages, torch.tensor([[1.5, -0.5, -0.5, -0.5]]).double(), rtol=1e-5, atol=0)


def test_dr_grpo_keeps_the_size_of_the_difference():
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "dr_grpo")
    assert advantages.tolist() == [[0.75, -0.25, -0.25, -0.25]]


def test_rloo_subtracts_the_mean_of_the_others():
    # (1, 0, 0, 0.5): the others' means are 1/6, 1/2, 1/2 and 1/3.
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.5]], dtype=torch.float64), "rloo")
    torch.testing.assert_close(advantages, torch.tensor([[5 / 6, -1 / 2, -1 / 2, 1 / 6]], dtype=torch.float64))


def test_maxrl_divides_by_the_mean():
    # One of four right: (3/4, -1/4, ...) / (1/4). With p right, a success is worth (1 - p) / p and a failure -1.
    advantages = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]), "maxrl")
    expected = torch.tensor([[3.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=0)


def test_maxrl_refuses_a_negative_reward_in_one_line():
    with pytest.raises(
        UserError, match=r"a reward is -0\.5, but learner.advantage maxrl .* at least 0; change"
    ) as error:
        group_advantages(torch.tensor([[1.0, -0.5]]), "maxrl")
    assert "\n" not in str(error.value)


def test_without_a_baseline_the_reward_is_the_advantage():
    assert group_advantages(torch.tensor([[1.0, 1.0], [0.5, -2.0]]), "none").tolist() == [[1.0, 1.0], [0.5, -2.0]]


def test_the_settings_name_every_estimator_and_every_loss():
    assert {*ESTIMATORS, "gdpo"} == set(get_args(LearnerConfig.model_fields["advantage"].annotation))
    assert set(LOSSES) == set(get_args(LearnerConfig.model_fields["loss"].annotation))


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "maxrl"])
@pytest.mark.parametrize("size", range(2, 17))
def test_equal_rewards_give_exact_zeros_whatever_the_dust(size: int, estimator: str):
    for reward in (0.0, 0.1, 0.3, 0.7, 1.3, 1e-3, 1e6):
        assert not group_advantages(torch.full((1, size), reward), estimator).any()
    for weights in itertools.permutations((0.1, 0.2, 0.7)):
        # One reward, added up in as many orders as there are completions in the group.
        orders = itertools.cycle(itertools.permutations(weights))
        rewards = torch.tensor([[sum(next(orders)) for _ in range(size)]], dtype=torch.float64)
        assert not group_advantages(rewards, estimator).any()
        assert not gdpo(rewards[None], torch.ones(1)).any()
        assert zero_variance(rewards).tolist() == [True]


def test_a_real_difference_is_never_taken_for_dust():
    assert group_advantages(torch.tensor([[1e-3, 0.0]])).abs().min() > 0.5


def test_groups_do_not_see_each_other():
    # Two groups of one prompt: the flat one stays at zero (it would not if they were merged).
    advantages = group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert advantages[0].abs().min() > 0
    assert not advantages[1].any()


def test_the_size_of_the_reward_does_not_matter_but_the_order_does():
    rewards = torch.tensor([[0.5, 2.0, 1.0, 1.5]], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards), group_advantages(10 * rewards + 3), rtol=1e-4, atol=1e-6)
    order = [2, 0, 3, 1]
    assert torch.equal(group_advantages(rewards)[:, order], group_advantages(rewards[:, order]))


def test_gdpo_tells_mixes_of_one_total_apart():
    # Totals 1, 1, 1, 0. Summed first, three are the same; compared signal by signal, the rare signal counts for more.
    verify = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    form = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    summed = group_advantages(verify + form)
    apart = gdpo(torch.stack([verify, form]), torch.tensor([1.0, 1.0]))
    assert summed[0, 0] == summed[0, 1]
    assert apart[0, 0] > apart[0, 1] > apart[0, 3]


def test_gdpo_with_one_signal_is_grpo_up_to_scale_and_flat_is_zero():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]])
    ratio = gdpo(rewards[None], torch.tensor([2.0])) / group_advantages(rewards)
    torch.testing.assert_close(ratio, torch.full_like(ratio, ratio[0, 0].item()))
    flat = gdpo(torch.full((2, 3, 4), 0.7), torch.tensor([0.1, 0.2]))
    assert not flat.any()
    assert math.isfinite(flat.sum())
