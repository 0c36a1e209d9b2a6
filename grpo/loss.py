"""The objective, per token. Tensors in, tensors out: no model, no configuration, no averaging hidden inside.

With ratio rho_t = pi(o_t) / pi_old(o_t), advantage A and reference pi_ref, the loss of one completion token is

    -min(rho_t A, clip(rho_t, 1 - low, 1 + high) A)  +  kl_coef * k3_t  -  entropy_coef * H_t

and the loss of an optimiser step is the sum over its tokens of weight * that, where the weights come from
`token_weights` and do not depend on how the tokens are cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

Aggregation = Literal["token", "sequence", "constant"]
MAX_LOG_RATIO = 20.0


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """[N] clipped surrogate (PPO, arXiv 1707.06347, eq. 7), to be minimised; differentiable in `logprobs`.

    The minimum is pessimistic: for A > 0 the gain stops at 1 + clip_high, for A < 0 at 1 - clip_low, while a move in
    the wrong direction is never clipped.
    """
    ratio = importance_ratio(logprobs, old_logprobs)
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def importance_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] pi / pi_old. The log-ratio is clamped so that one absurd token cannot make an infinity."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def completion_weights(differences: torch.Tensor, owners: torch.Tensor, completions: int) -> torch.Tensor:
    """[C] pi / pi_sampler of whole completions, from [N] log-ratios of their tokens; `owners` says whose each is.

    Their effective sample size (sum w)^2 / sum w^2 is how many completions drawn from the policy itself would say as
    much about it (Kong, 1992): all of them where sampler and trainer agree.
    """
    log_ratios = torch.zeros(completions, dtype=torch.float64, device=differences.device)
    return log_ratios.index_add_(0, owners, differences.double()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] float64: Schulman's k3 estimate of KL(pi || pi_ref), exp(d) - 1 - d with d = log pi_ref - log pi.

    Never negative, and d^2 / 2 for small d, which exp(d) - d - 1 in float32 loses to rounding at |d| = 1e-4. Its value
    estimates the reverse KL on samples of pi. As a loss term its gradient, (1 - exp(d)) grad log pi, is on average that
    of KL(pi_ref || pi): GRPO and the paper's code use it this way, and so do we.
    """
    log_ratio = (ref_logprobs.double() - logprobs.double()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(log_ratio) - log_ratio


def token_weights(lengths: Sequence[int], aggregation: Aggregation, max_new_tokens: int) -> list[float]:
    """[completions] what each token of a completion weighs in the loss of the optimiser step.

    `lengths` are the trained completion lengths of the whole optimiser step; 0 means left out. token: every token the
    same (DAPO). sequence: every completion the same (GRPO as published). constant: divide by a length no completion
    exceeds, so that long completions are neither favoured nor punished (Dr. GRPO).

    >>> token_weights([1, 3], "token", 8), token_weights([1, 4], "sequence", 8), token_weights([1, 4], "constant", 8)
    ([0.25, 0.25], [0.5, 0.125], [0.0625, 0.0625])
    """
    completions = sum(length > 0 for length in lengths)
    if completions == 0:
        return [0.0] * len(lengths)
    if aggregation == "token":
        return [1 / sum(lengths) if length else 0.0 for length in lengths]
    if aggregation == "sequence":
        return [1 / (completions * length) if length else 0.0 for length in lengths]
    return [1 / (completions * max_new_tokens) if length else 0.0 for length in lengths]
