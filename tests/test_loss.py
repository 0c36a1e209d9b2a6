"""The page of maths: the clip's table, k3, and weights that sum to what they should."""

from __future__ import annotations

import math

import pytest
import torch

from grpo.loss import completion_ratio, importance_ratio, kl_k3, policy_loss, token_weights
from grpo.packing import pack
from grpo.types import Sample


@pytest.mark.parametrize(
    ("advantage", "ratio", "objective", "has_gradient"),
    [
        # clip to [0.8, 1.2]; the objective is min(ratio A, clipped A)
        (+1, 0.5, 0.5, True),  # below the band in the wrong direction: not clipped
        (+1, 0.9, 0.9, True),
        (+1, 1.1, 1.1, True),
        (+1, 1.5, 1.2, False),  # the gain stops at 1 + 0.2
        (-1, 0.5, -0.8, False),  # the gain stops at 1 - 0.2
        (-1, 0.9, -0.9, True),
        (-1, 1.1, -1.1, True),
        (-1, 1.5, -1.5, True),  # above the band in the wrong direction: not clipped
    ],
)
def test_clip_table(advantage: float, ratio: float, objective: float, has_gradient: bool):
    logprobs = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss = policy_loss(importance_ratio(logprobs, torch.zeros(1)), torch.tensor([float(advantage)]), 0.2, 0.2)
    loss.sum().backward()
    assert loss.item() == pytest.approx(-objective)
    # d(-ratio A)/d log pi = -ratio A where it is not clipped
    assert logprobs.grad.item() == pytest.approx(-ratio * advantage if has_gradient else 0.0)


def test_the_two_clips_are_not_swapped():
    ratios = torch.tensor([0.5, 1.5], dtype=torch.float64)
    advantages = torch.tensor([-1.0, 1.0])
    loss = policy_loss(ratios, advantages, clip_low=0.1, clip_high=0.4)
    torch.testing.assert_close(loss, torch.tensor([0.9, -1.4], dtype=torch.float64))


def test_first_update_has_ratio_one_and_the_plain_policy_gradient():
    logprobs = torch.tensor([-1.5, -0.2, -7.0], requires_grad=True)
    advantages = torch.tensor([2.0, -1.0, 0.5])
    ratio = importance_ratio(logprobs, logprobs.detach())
    policy_loss(ratio, advantages, 0.2, 0.2).sum().backward()
    assert torch.equal(ratio, torch.ones(3))
    assert torch.equal(logprobs.grad, -advantages)


def test_k3_is_exact_in_expectation_and_never_negative():
    # Two distributions over three tokens: E_pi[k3] = sum pi (pi_ref/pi - log(pi_ref/pi) - 1) = KL(pi || pi_ref).
    pi = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    k3 = kl_k3(pi.log(), ref.log())
    assert (k3 >= 0).all()
    torch.testing.assert_close((pi * k3).sum(), (pi * (pi / ref).log()).sum())
    assert kl_k3(pi.log(), pi.log()).abs().max() == 0


@pytest.mark.parametrize("size", [1e-7, 1e-5, 1e-4, 1e-2, 1.0])
def test_k3_of_float32_log_probabilities_is_right_for_small_differences(size: float):
    # k3 is d^2 / 2 + d^3 / 6 + ...; exp(d) - d - 1 in float32 is negative for a tenth of the tokens at 1e-4.
    generator = torch.Generator().manual_seed(0)
    logprobs = -3 * torch.rand(2000, generator=generator)
    ref = logprobs + size * torch.randn(2000, generator=generator)
    exact = [math.fsum(d**k / math.factorial(k) for k in range(2, 30)) for d in (ref.double() - logprobs).tolist()]
    k3 = kl_k3(logprobs, ref)
    assert (k3 >= 0).all()
    assert k3.mean().item() == pytest.approx(sum(exact) / len(exact), rel=1e-2)


def test_weights_of_whole_completions():
    # Two completions: log-ratios 0.1 + 0.2 and -0.3, so weights e^0.3 and e^-0.3.
    samples = [Sample((1,), (4,), (0.0,), 0.0), Sample((1,), (2, 3), (0.0, 0.0), 0.0)]
    (batch,) = pack(samples, [1.0, 1.0], 100)
    weights = completion_ratio(torch.tensor([-0.3, 0.1, 0.2]), batch)
    torch.testing.assert_close(weights, torch.tensor([-0.3, 0.3], dtype=torch.float64).exp(), rtol=1e-6, atol=0)


def test_k3_as_a_loss_pulls_towards_the_reference_with_the_forward_kls_gradient():
    # Over a softmax with logits z, the expected gradient of k3 (samples fixed) is that of KL(ref || pi): pi - ref.
    z = torch.tensor([0.3, -0.4, 1.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logp = torch.log_softmax(z, 0)
    (logp.detach().exp() * kl_k3(logp, ref.log())).sum().backward()
    torch.testing.assert_close(z.grad, logp.detach().exp() - ref)


def test_absurd_log_ratios_stay_finite():
    far = torch.tensor([-1000.0, 1000.0])
    ratio = importance_ratio(far, -far)
    for value in (kl_k3(far, -far), ratio, policy_loss(ratio, torch.ones(2), 0.2, 0.2)):
        assert torch.isfinite(value).all()


def test_nan_is_not_hidden():
    ratio = importance_ratio(torch.tensor([math.nan]), torch.zeros(1))
    assert policy_loss(ratio, torch.ones(1), 0.2, 0.2).isnan().all()
    assert kl_k3(torch.tensor([math.nan]), torch.zeros(1)).isnan().all()


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean"])
def test_weights_sum_to_one(aggregation: str):
    lengths = [3, 1, 0, 9]
    weights = token_weights(lengths, aggregation, 16)
    assert sum(w * n for w, n in zip(weights, lengths, strict=True)) == pytest.approx(1)


def test_equal_lengths_make_all_aggregations_agree():
    assert (
        token_weights([4, 4], "token-mean", 4)
        == token_weights([4, 4], "seq-mean", 4)
        == token_weights([4, 4], "dr_grpo", 4)
    )


def test_nothing_to_train_is_no_division_by_zero():
    assert token_weights([0, 0], "token-mean", 8) == [0.0, 0.0]
    assert token_weights([], "seq-mean", 8) == []
