"""Exercise 2: the ratio and the clip.

The completions of a step are drawn once and may be used for several updates. After the first update the model is no
longer the one that drew them. The ratio measures how much the probability of a token has changed:

    ratio = pi_new(token) / pi_old(token) = exp(logprob - old_logprob)

For a token with advantage A we want ratio * A to grow. But only up to a point: the token was good under the old
model, which means little once the new model is far away. So PPO, and GRPO after it, takes

    objective = min(ratio * A,  clipped ratio * A)      clipped ratio = ratio, but at least 1 - clip_low
                                                                               and at most 1 + clip_high

The min is taken of the two products, not of the two ratios. With A > 0 the objective stops growing at 1 + clip_high.
With A < 0 it stops growing at 1 - clip_low. A ratio that went the wrong way is not clipped, so it can come back.

Optimisers minimise, so the loss is minus the objective. Return one loss for each token; averaging comes later.
Gradient must flow to `logprobs`.

For example, with clips of 0.2: ratio 1.5 and A = 1 give -1.2, ratio 0.5 and A = 1 give -0.5, ratio 1.5 and A = -1
give 1.5, ratio 0.5 and A = -1 give 0.8.

In the repository: grpo/loss.py, importance_ratio and policy_loss.
"""

import torch


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_low: float, clip_high: float
) -> torch.Tensor:
    """[N], [N], [N] -> [N] loss of each token. `logprobs` are the new model's, `old_logprobs` the old model's."""
    ...  # your code here
