"""Exercise 4: k3, an estimate of the KL divergence that is never negative.

To keep the model near where training started, some recipes add a penalty to the loss: the KL divergence between the
model and a frozen copy of its start, the reference. The divergence is an average over all possible tokens. We have
only the sampled tokens, so it is estimated. For one token, with

    d = reference's log-probability of the token - model's log-probability of the token

the estimate -d is right on average, but negative for many tokens. John Schulman's k3 is right on average, too, and
never negative, because e^d is at least 1 + d:

    k3 = e^d - 1 - d

When d is small, e^d - 1 loses most of its digits in float32: at d = 0.0001 it can come out smaller than d, and k3
negative after all. `torch.expm1(d)` computes e^d - 1 without that loss. Use it.

Return one estimate for each token. Gradient must flow to `logprobs`.

For example, logprob -1 and reference -1 give 0. Logprob -1 and reference -0.5 give e^0.5 - 1 - 0.5 = 0.1487.

In the repository: grpo/loss.py, kl_k3.
"""

import torch


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """[N] model's, [N] reference's log-probabilities of the sampled tokens -> [N] estimates."""
    ...  # your code here
