"""The objective, per token: tensors in, tensors out, without a model, settings or averaging.

With ratio rho_t = pi(o_t) / pi_old(o_t), advantage A and reference pi_ref, GRPO's loss of one completion token is

    -min(rho_t A, clip(rho_t, 1 - low, 1 + high) A)  +  kl_coef * k3_t  -  entropy_coef * H_t

`LOSSES` holds the first term and its alternatives from other papers. The loss of an optimiser step is the weighted sum
over its tokens. `token_weights` computes the weights once for the whole step, so they do not depend on the
micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from grpo.packing import Batch

MAX_LOG_RATIO = 20.0


class Surrogate(NamedTuple):
    """The policy's part of the loss, with its ratios and clips. [M] is [N] tokens, or [C] completions for gspo."""

    loss: torch.Tensor
    """[N] to be minimised; differentiable in the log-probabilities"""
    ratio: torch.Tensor
    """[M] importance ratio"""
    clipped_low: torch.Tensor
    """[M] bool: the lower clip acts"""
    clipped_high: torch.Tensor
    """[M] bool: the upper clip acts"""


def grpo(logprobs: torch.Tensor, old: torch.Tensor, batch: Batch, clip_low: float, clip_high: float) -> Surrogate:
    """PPO's clipped surrogate with the ratio of each token (GRPO, arXiv 2402.03300; clip-higher: 2503.14476)."""
    return _clipped(importance_ratio(logprobs, old), batch.advantages, clip_low, clip_high)


def gspo(logprobs: torch.Tensor, old: torch.Tensor, batch: Batch, clip_low: float, clip_high: float) -> Surrogate:
    """As grpo, with one ratio per completion: the geometric mean of its tokens' ratios (arXiv 2507.18071)."""
    ratio = importance_ratio(batch.mean(logprobs), batch.mean(old))  # [C]
    surrogate = _clipped(ratio, batch.mean(batch.advantages), clip_low, clip_high)
    return surrogate._replace(loss=batch.spread(surrogate.loss))


def cispo(logprobs: torch.Tensor, old: torch.Tensor, batch: Batch, clip_low: float, clip_high: float) -> Surrogate:
    """Log-probability weighted by the clipped, detached ratio: every token keeps a gradient (arXiv 2506.13585)."""
    ratio = importance_ratio(logprobs, old).detach()
    loss = -ratio.clamp(1 - clip_low, 1 + clip_high) * batch.advantages * logprobs
    return Surrogate(loss, ratio, ratio < 1 - clip_low, ratio > 1 + clip_high)


def reinforce(logprobs: torch.Tensor, old: torch.Tensor, batch: Batch, clip_low: float, clip_high: float) -> Surrogate:
    """-A log pi (Williams, 1992). The loss has no ratio, so nothing is clipped; `ratio` is for the metrics."""
    ratio = importance_ratio(logprobs, old)
    never = torch.zeros_like(ratio, dtype=torch.bool)
    return Surrogate(-batch.advantages * logprobs, ratio, never, never)


LOSSES = {"grpo": grpo, "gspo": gspo, "cispo": cispo, "reinforce": reinforce}
"""`learner.loss` -> function of [N] log-probabilities, [N] old ones, the batch and the two clips."""


def _clipped(ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float) -> Surrogate:
    """The clipped surrogate of [M] ratios and advantages, with an [M] loss."""
    clipped_low = (ratio < 1 - clip_low) & (advantages < 0)
    clipped_high = (ratio > 1 + clip_high) & (advantages > 0)
    return Surrogate(policy_loss(ratio, advantages, clip_low, clip_high), ratio, clipped_low, clipped_high)


def policy_loss(ratio: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float) -> torch.Tensor:
    """[M] clipped surrogate (PPO, arXiv 1707.06347, eq. 7), to be minimised; differentiable in `ratio`.

    The minimum is pessimistic: for A > 0 the gain stops at 1 + clip_high, for A < 0 at 1 - clip_low, while a move in
    the wrong direction is never clipped.
    """
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def importance_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] pi / pi_old. The log-ratio is clamped so that one extreme token cannot give an infinite ratio."""
    return _bounded(logprobs - old_logprobs).exp()


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def completion_ratio(old_logprobs: torch.Tensor, batch: Batch) -> torch.Tensor:
    """[C] float64 pi_old / pi_sampler of whole completions: the product over their trained tokens.

    The effective sample size of these weights w is (sum w)^2 / sum w^2 (Kong, 1992): that many completions drawn from
    the policy itself would estimate its mean reward as well. It is C where sampler and trainer agree.
    """
    return _bounded(batch.total(old_logprobs - batch.sampler_logprobs)).exp()


def sampler_weights(old_logprobs: torch.Tensor, batch: Batch, mode: str, cap: float) -> torch.Tensor:
    """[N] weights of the surrogate that correct for a sampler whose probabilities differ from the trainer's.

    The weight is pi_old / pi_sampler. `mode` is LEVEL_ACTION. LEVEL is token (a ratio for each) or sequence (their
    product over the completion). ACTION applies above `cap`: truncate (cut to the cap; TIS,
    fengyao.notion.site/off-policy-rl) or mask (weight 0; IcePop's upper bound, arXiv 2510.18855). A masked token stays
    in the normaliser.
    """
    level, action = mode.split("_")
    if level == "token":
        ratio = importance_ratio(old_logprobs, batch.sampler_logprobs)
    else:
        ratio = batch.spread(completion_ratio(old_logprobs, batch))
    return ratio.clamp(max=cap) if action == "truncate" else ratio * (ratio <= cap)


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] float64: Schulman's k3 estimate of KL(pi || pi_ref), exp(d) - 1 - d with d = log pi_ref - log pi.

    Never negative. For small d it is about d^2 / 2; in float32, exp(d) - d - 1 loses that to rounding at |d| = 1e-4.
    The value estimates the reverse KL on samples of pi. As a loss term its gradient, (1 - exp(d)) grad log pi, is on
    average that of KL(pi_ref || pi). GRPO and the One-Shot RLVR code use it this way.
    """
    log_ratio = _bounded(ref_logprobs.double() - logprobs.double())
    return torch.expm1(log_ratio) - log_ratio


def token_weights(
    lengths: Sequence[int], aggregation: Literal["token-mean", "seq-mean", "dr_grpo"], max_new_tokens: int
) -> list[float]:
    """[completions] weight of each trained token of a completion in the loss of the optimiser step.

    `lengths` counts the trained tokens of every completion of the step; a completion with 0 does not count.
    token-mean: every token weighs the same (DAPO, arXiv 2503.14476). seq-mean: every completion weighs the same (GRPO
    as published). dr_grpo: divide by completions x max_new_tokens, so that long completions are neither favoured nor
    punished (arXiv 2503.20783).

    >>> for aggregation in ("token-mean", "seq-mean", "dr_grpo"):
    ...     print(token_weights([1, 4], aggregation, 8))
    [0.2, 0.2]
    [0.5, 0.125]
    [0.0625, 0.0625]
    """
    tokens, completions = sum(lengths), sum(length > 0 for length in lengths)
    divisor = {
        "token-mean": lambda length: tokens,
        "seq-mean": lambda length: completions * length,
        "dr_grpo": lambda length: completions * max_new_tokens,
    }[aggregation]
    return [1 / divisor(length) if length else 0.0 for length in lengths]
